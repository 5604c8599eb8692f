// A matrix product whose rows do not reach each other: an element of x W^T is the same multiply-adds in
// the same order, whatever rows stand beside it and however they are tiled.
//
// The weight lies in panels. A panel holds the bias of a few vectors of columns, then their weights, as
// many vectors for each step along the inner dimension.
#pragma once

#include "transpose.hpp"

namespace lipvae::LIPVAE_ISA {

// Terms that are added up one by one; sums of so many are then added. It keeps the rounding small.
constexpr std::int64_t chain = 256;

template <class T>
struct Panel {
  using S = Simd<T>;
  // A step reads `vectors` of the panel and broadcasts one number of each row of x, for `sums`
  // multiply-adds. With AVX-512 the squarest shape, which loads least, is faster beside a busy neighbour.
#if defined(__AVX512F__)
  static constexpr int vectors = 4, sums = 24;
#elif defined(__aarch64__)
  static constexpr int vectors = 2, sums = 24;
#else
  static constexpr int vectors = 2, sums = 12;
#endif
  static constexpr int width = vectors * S::lanes;
  // Rows of x at a time, beside so many vectors.
  static constexpr int rows_beside(int some) { return sums / some < 12 ? sums / some : 12; }
  static constexpr int rows = rows_beside(vectors);
  // So much of a panel, 32 kB at most, stays in the first cache while rows go by.
  static constexpr std::int64_t fit = 32 * 1024 / (width * std::int64_t(sizeof(T)));
  static constexpr std::int64_t depth = fit < 2 * chain ? fit : 2 * chain;
  // Rows that stay in the second cache while panels go by.
  static std::int64_t tile(std::int64_t inner) {
    constexpr std::int64_t numbers = (vector_bytes < 64 ? 256 : 512) * 1024 / std::int64_t(sizeof(T));
    const std::int64_t whole = inner ? numbers / inner : numbers;
    return whole > 4 * rows ? whole : 4 * rows;
  }

  static std::int64_t count(std::int64_t columns) { return (columns + width - 1) / width; }
  static std::int64_t size(std::int64_t inner) { return (1 + inner) * width; }
};

// One panel of the columns [0, columns) whose weights lie `inner` apart. Columns beyond are 0.
template <class T>
void pack_panel(const T* weight, const T* bias, std::int64_t columns, std::int64_t inner, T* panel) {
  constexpr int width = Panel<T>::width;
  const int filled = columns < width ? int(columns) : width;
  for (int c = 0; c < width; ++c) panel[c] = c < filled && bias ? bias[c] : T(0);
  panel += width;
  transpose<T>(weight, inner, filled, inner, panel, width);
  for (std::int64_t i = 0; filled < width && i < inner; ++i)
    for (int c = filled; c < width; ++c) panel[i * width + c] = T(0);
}

// Products of a few rows of x with one panel, for a part of the inner dimension.
template <class T>
struct Strip {
  const T* x;
  std::int64_t x_stride;
  const T* panel;  // the first step of the part
  std::int64_t depth;
  const T* start;  // what the part is added to: the bias, or the sums so far
  std::int64_t start_stride;
  T* out;
  std::int64_t out_stride, columns;  // of the panel
  bool relu;
};

template <class T, int rows, int vectors>
void multiply_rows(const Strip<T>& a) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int width = Panel<T>::width;
  const T *x = a.x, *panel = a.panel;
  const std::int64_t x_stride = a.x_stride, depth = a.depth;
  V sum[rows][vectors] = {};
  auto add_chain = [&](std::int64_t steps) __attribute__((always_inline)) {
    for (const T* end = panel + steps * width; panel != end; panel += width, ++x) {
      V w[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) w[v] = S::load(panel + v * S::lanes);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const V factor = S::splat(x[r * x_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] += factor * w[v];
      }
    }
  };
  auto each = [&](auto&& body) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) body(r, v);
  };
  if (Panel<T>::depth <= chain || depth <= chain) {
    add_chain(depth);
  } else {
    add_chain(chain);
    V first[rows][vectors];
    each([&](int r, int v) __attribute__((always_inline)) {
      first[r][v] = sum[r][v];
      sum[r][v] = V{};
    });
    add_chain(depth - chain);
    each([&](int r, int v) __attribute__((always_inline)) { sum[r][v] += first[r][v]; });
  }
  const T* start = a.start;
  T* out = a.out;
  const std::int64_t start_stride = a.start_stride, out_stride = a.out_stride;
  const std::int64_t last = a.columns - (vectors - 1) * S::lanes;  // columns of the last vector, or more
  const V least = S::splat(a.relu ? T(0) : -T(__builtin_inf()));
  each([&](int r, int v) __attribute__((always_inline)) {
    const T* from = start + r * start_stride + v * S::lanes;
    T* to = out + r * out_stride + v * S::lanes;
    if (v < vectors - 1 || last >= S::lanes)
      S::store(to, S::max(least, S::load(from) + sum[r][v]));  // a NaN passes
    else
      S::store_first(to, S::max(least, S::load_first(from, last) + sum[r][v]), last);
  });
}

// multiply_rows for a number of rows known at run time.
template <class T, int vectors, int most = Panel<T>::rows_beside(vectors)>
void multiply_strip(std::int64_t rows, const Strip<T>& a) {
  if constexpr (most > 1)
    if (rows < most) return multiply_strip<T, vectors, most - 1>(rows, a);
  multiply_rows<T, most, vectors>(a);
}

// The same for any number of rows and columns.
template <class T, int vectors = Panel<T>::vectors>
void multiply_panel(std::int64_t rows, const Strip<T>& a) {
  if constexpr (vectors > 1)
    if (a.columns <= (vectors - 1) * Simd<T>::lanes) return multiply_panel<T, vectors - 1>(rows, a);
  // Strips of like heights: one or two rows alone would wait for their own sums.
  constexpr int most = Panel<T>::rows_beside(vectors);
  const std::int64_t strips = (rows + most - 1) / most;
  // What follows in memory is the next part of the panel, or the next panel, or nothing.
  constexpr std::uintptr_t line = 64;
  const std::uintptr_t bytes = std::uintptr_t(a.depth) * Panel<T>::width * sizeof(T);
  const std::int64_t lines = strips < 4 ? 0 : std::int64_t(bytes / line);
  std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(a.panel) + bytes;
  Strip<T> strip = a;
  for (std::int64_t i = 0; i < strips; ++i) {
    for (std::int64_t n = (i + 1) * lines / strips - i * lines / strips; n > 0; --n, ahead += line)
      __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
    const std::int64_t height = rows / strips + (i < rows % strips);
    multiply_strip<T, vectors>(height, strip);
    strip.x += height * a.x_stride;
    strip.start += height * a.start_stride;
    strip.out += height * a.out_stride;
  }
}

// Rows [0, rows) of x W^T + bias, for the panels of `columns` columns. Called for at most Panel::tile
// rows, it keeps to the second cache.
template <class T>
void multiply(const T* x, std::int64_t rows, std::int64_t inner, const T* panels, std::int64_t columns,
              bool relu, T* out, std::int64_t out_stride) {
  using P = Panel<T>;
  const std::int64_t parts = inner > P::depth ? (inner + P::depth - 1) / P::depth : 1;
  for (std::int64_t column = 0; column < columns; column += P::width, panels += P::size(inner)) {
    const std::int64_t left = columns - column, filled = left < P::width ? left : P::width;
    T* const to = out + column;
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t first = part * inner / parts, depth = (part + 1) * inner / parts - first;
      multiply_panel<T>(rows, {x + first, inner, panels + (1 + first) * P::width, depth, part ? to : panels,
                               part ? out_stride : 0, to, out_stride, filled, relu && part == parts - 1});
    }
  }
}

// In linear.cpp, once: each has its loops unrolled for every number of rows.
extern template void multiply(const float*, std::int64_t, std::int64_t, const float*, std::int64_t, bool,
                              float*, std::int64_t);
extern template void multiply(const double*, std::int64_t, std::int64_t, const double*, std::int64_t, bool,
                              double*, std::int64_t);

// What parallel_for takes for the work of a product: a core multiplies about twenty bytes' worth of
// numbers in the time that it streams one.
template <class T>
double product_bytes(std::int64_t rows, std::int64_t inner, std::int64_t columns) {
  return double(rows) * double(inner) * double(columns) * sizeof(T) / 20.0;
}

}  // namespace lipvae::LIPVAE_ISA
