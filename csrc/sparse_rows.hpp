// Products with the few entries that the projection leaves of a weight. A sum over them is the one that
// panels.hpp makes: it adds the same products in the same order and leaves out those with a zero.
#pragma once

#include "kernels.hpp"
#include "l1_project.hpp"
#include "panels.hpp"
#include "parallel.hpp"
#include "transpose.hpp"

namespace lipvae::LIPVAE_ISA {

template <class T>
struct Entries {
  std::int64_t* extent;
  T* values;
  std::int32_t* index;

  Entries(void* memory, std::int64_t columns, std::int64_t inner)
      : extent(static_cast<std::int64_t*>(memory)),
        values(reinterpret_cast<T*>(extent + 2 * columns)),
        index(reinterpret_cast<std::int32_t*>(values + entries_places(columns, inner))) {}
};

// Lists the entries of row `row`, with the threshold tau, from place `at` on. Returns the place after them,
// or -1 if they could pass `end`.
template <class T>
std::int64_t list_row(const T* w, std::int64_t n, double tau, const Entries<T>& to, std::int64_t row,
                      std::int64_t at, std::int64_t end) {
  using S = Simd<T>;
  to.extent[2 * row] = at;
  if (tau > 0.0) {
    const SoftThreshold<T> soft(split(tau, T()));
    for (std::int64_t i = 0; i < n; i += S::lanes) {
      const typename S::V v = n - i < S::lanes ? S::load_first(w + i, n - i) : S::load(w + i);
      unsigned set = S::movemask(soft.active(v));
      if (!set) continue;
      if (at + S::lanes > end) return -1;
      T value[S::lanes];
      S::store(value, soft.shrink(v));
      for (; set; set &= set - 1, ++at) {
        const int lane = __builtin_ctz(set);
        to.values[at] = value[lane];
        to.index[at] = std::int32_t(i + lane);
      }
    }
  } else {  // inside the ball, or not a number
    if (at + n > end) return -1;
    for (std::int64_t i = 0; i < n; ++i, ++at) {
      to.values[at] = tau == 0.0 ? w[i] : T(tau);
      to.index[at] = std::int32_t(i);
    }
  }
  to.extent[2 * row + 1] = at;
  return at;
}

// Rows of x side by side, so that a vector holds one entry of each of its lanes' rows.
template <class T>
struct Tile {
  static constexpr int most_vectors = 8, most_rows = most_vectors * Simd<T>::lanes;
  std::int64_t first, rows;
  int vectors;  // 1, 2, 4 or 8

  std::int64_t width() const { return vectors * Simd<T>::lanes; }
  static Tile at(std::int64_t first, std::int64_t rows) {
    Tile tile{first, rows - first < most_rows ? rows - first : most_rows, 1};
    while (tile.width() < tile.rows) tile.vectors *= 2;
    return tile;
  }
};

// Runs body(begin, end) over [0, columns), in ranges that begin at a cache line of columns.
template <class T, class Body>
void for_each_line(std::int64_t columns, double bytes, int threads, Body&& body) {
  constexpr std::int64_t line = 64 / std::int64_t(sizeof(T));
  parallel_for((columns + line - 1) / line, bytes, threads, [&](std::int64_t begin, std::int64_t end) {
    body(begin * line, end * line < columns ? end * line : columns);
  });
}

// The tile's rows of a matrix side by side: to [columns, tile.width()]. Lanes without a row become 0.
template <class T>
void lay_side_by_side(const T* from, std::int64_t columns, const Tile<T>& tile, int threads, T* to) {
  const std::int64_t width = tile.width();
  const double bytes = 2.0 * double(columns) * double(width) * sizeof(T);
  for_each_line<T>(columns, bytes, threads, [&](std::int64_t begin, std::int64_t end) {
    transpose(from + tile.first * columns + begin, columns, tile.rows, end - begin, to + begin * width, width);
    for (std::int64_t r = tile.rows; r < width; ++r)
      for (std::int64_t i = begin; i < end; ++i) to[i * width + r] = T(0);
  });
}

template <class T>
bool all_finite(const T* x, std::int64_t n) {
  using S = Simd<T>;
  typename S::V sum[4] = {};
  for_each_vector<4>(x, n, [&](typename S::V v, int u) { sum[u] += v * S::splat(T(0)); });
  const T total = add_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return total == total;
}

// Runs body(integral_constant vectors) for the tile's number of vectors.
template <class T, class Body>
LIPVAE_INLINE void with_vectors(const Tile<T>& tile, Body&& body) {
  if (tile.vectors == 8) return body(std::integral_constant<int, 8>());
  if (tile.vectors == 4) return body(std::integral_constant<int, 4>());
  if (tile.vectors == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 1>());
}

// One column of x W^T + bias for a tile: to [vectors * lanes].
template <int vectors, class T>
void multiply_entries(const T* x, const Entries<T>& w, std::int64_t column, std::int64_t inner, T bias,
                      T* to) {
  using S = Simd<T>;
  using V = typename S::V;
  using P = Panel<T>;
  const T* const values = w.values;
  const std::int32_t* const index = w.index;
  std::int64_t e = w.extent[2 * column];
  const std::int64_t end = w.extent[2 * column + 1];
  V sum[vectors];
  auto add_until = [&](std::int64_t last) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[v] = V{};
    for (; e < end && index[e] < last; ++e) {
      const V factor = S::splat(values[e]);
      const T* const from = x + index[e] * std::int64_t(vectors * S::lanes);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[v] += factor * S::load(from + v * S::lanes);
    }
  };
  for (int v = 0; v < vectors; ++v) S::store(to + v * S::lanes, S::splat(bias));
  const std::int64_t parts = inner > P::depth ? (inner + P::depth - 1) / P::depth : 1;
  for (std::int64_t part = 0; part < parts && e < end; ++part) {
    const std::int64_t first = part * inner / parts, last = (part + 1) * inner / parts;
    add_until(first + chain < last ? first + chain : last);
    if (e < end && index[e] < last) {
      V head[vectors];
      for (int v = 0; v < vectors; ++v) head[v] = sum[v];
      add_until(last);
      for (int v = 0; v < vectors; ++v) sum[v] += head[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) S::store(to + v * S::lanes, S::load(to + v * S::lanes) + sum[v]);
  }
}

// A row of x that is not finite, times all of W, zeros too.
template <class T>
void multiply_all(const T* x, const Entries<T>& w, std::int64_t columns, std::int64_t inner, const T* bias,
                  T* y) {
  for (std::int64_t c = 0; c < columns; ++c) {
    T sum = bias ? bias[c] : T(0);
    std::int64_t e = w.extent[2 * c];
    for (std::int64_t i = 0; i < inner; ++i) {
      const bool listed = e < w.extent[2 * c + 1] && w.index[e] == i;
      sum += x[i] * (listed ? w.values[e++] : T(0));
    }
    y[c] = sum;
  }
}

}  // namespace lipvae::LIPVAE_ISA
