// The gradients of the Lipschitz layer where the projection left few entries: of the weight's gradient
// only those entries are asked for.
#include "isa_kernels.hpp"
#include "scratch.hpp"
#include "sparse_rows.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// sums[e] += the sum over the tile's rows of grad x, for each entry e of a column.
template <int vectors, class T>
void add_products(const T* grad, const T* x, const Entries<T>& w, std::int64_t column, T* sums) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int width = vectors * S::lanes, chains = vectors < 4 ? vectors : 4;
  V g[vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) g[v] = S::load(grad + column * width + v * S::lanes);
  for (std::int64_t e = w.extent[2 * column]; e < w.extent[2 * column + 1]; ++e) {
    const T* const from = x + w.index[e] * std::int64_t(width);
    V sum[chains] = {};
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[v % chains] += g[v] * S::load(from + v * S::lanes);
    V total = sum[0];
#pragma GCC unroll 4
    for (int v = 1; v < chains; ++v) total += sum[v];
    sums[e] += add_lanes<T>(total);
  }
}

// grad_x += grad W for `vectors` vectors of a tile's rows; both pointers are at the first of these.
template <int vectors, class T>
void spread(const T* grad, const Entries<T>& w, std::int64_t columns, std::int64_t width, T* grad_x) {
  using S = Simd<T>;
  using V = typename S::V;
  for (std::int64_t c = 0; c < columns; ++c) {
    V g[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) g[v] = S::load(grad + c * width + v * S::lanes);
    for (std::int64_t e = w.extent[2 * c]; e < w.extent[2 * c + 1]; ++e) {
      const V factor = S::splat(w.values[e]);
      T* const to = grad_x + w.index[e] * width;
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v)
        S::store(to + v * S::lanes, S::load(to + v * S::lanes) + factor * g[v]);
    }
  }
}

// The gradient of a row of the weight from that of its projection: what lies along the ball's face.
template <class T>
void project_gradient(const T* sums, const Entries<T>& w, std::int64_t row, double tau, std::int64_t inner,
                      T* to) {
  const std::int64_t begin = w.extent[2 * row], end = w.extent[2 * row + 1];
  for (std::int64_t i = 0; i < inner; ++i) to[i] = tau == tau ? T(0) : T(tau);
  if (tau != tau) return;
  double total = 0.0;
  if (tau > 0.0)
    for (std::int64_t e = begin; e < end; ++e)
      total += __builtin_signbit(w.values[e]) ? -double(sums[e]) : double(sums[e]);
  const T mean = tau > 0.0 ? T(total / double(end - begin)) : T(0);
  for (std::int64_t e = begin; e < end; ++e)
    to[w.index[e]] = __builtin_signbit(w.values[e]) ? sums[e] + mean : sums[e] - mean;
}

template <class T>
void backward(const LipschitzLinearBackward& a) {
  using S = Simd<T>;
  const T* grad = static_cast<const T*>(a.grad);
  const T* x = static_cast<const T*>(a.x);
  T *grad_x = static_cast<T*>(a.grad_x), *grad_weight = static_cast<T*>(a.grad_weight);
  const Entries<T> w(const_cast<void*>(a.entries), a.columns, a.inner);  // only read
  const std::int64_t rows = a.rows, columns = a.columns, inner = a.inner;
  const std::int64_t widest = Tile<T>::at(0, rows).width();
  const std::int64_t places = grad_weight ? entries_places(columns, inner) : 0;
  const Scratch scratch(((columns + inner) * widest + places) * std::int64_t(sizeof(T)));
  T* const grad_tile = static_cast<T*>(scratch.get());
  T* const x_tile = grad_tile + columns * widest;  // of x, then of its gradient
  T* const sums = x_tile + inner * widest;
  const double column_bytes = 2.0 * double(columns) * double(widest) * sizeof(T);
  const double inner_bytes = 2.0 * double(inner) * double(widest) * sizeof(T);
  if (grad_weight)
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t e = w.extent[2 * c]; e < w.extent[2 * c + 1]; ++e) sums[e] = T(0);
  for (Tile<T> tile = Tile<T>::at(0, rows); tile.rows > 0; tile = Tile<T>::at(tile.first + tile.rows, rows)) {
    const std::int64_t width = tile.width();
    lay_side_by_side(grad, columns, tile, a.threads, grad_tile);
    if (grad_weight) {
      lay_side_by_side(x, inner, tile, a.threads, x_tile);
      parallel_for(columns, column_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
        with_vectors(tile, [&](auto vectors) {
          for (std::int64_t c = begin; c < end; ++c)
            add_products<decltype(vectors)::value>(grad_tile, x_tile, w, c, sums);
        });
      });
    }
    if (!grad_x) continue;
    // Alone, a thread takes all vectors of an entry at once.
    const int share = a.threads > 1 && tile.vectors > 2 ? 2 : tile.vectors;
    parallel_for(tile.vectors / share, inner_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) {
        const std::int64_t first = part * share * S::lanes;
        for (std::int64_t i = 0; i < inner; ++i)
          for (int v = 0; v < share; ++v)
            S::store(x_tile + i * width + first + v * S::lanes, typename S::V{});
        with_vectors(Tile<T>{0, 0, share}, [&](auto vectors) {
          spread<decltype(vectors)::value>(grad_tile + first, w, columns, width, x_tile + first);
        });
      }
    });
    for_each_line<T>(inner, inner_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      transpose(x_tile + begin * width, width, end - begin, tile.rows, grad_x + tile.first * inner + begin,
                inner);
    });
  }
  if (!grad_weight) return;
  const double weight_bytes = double(columns) * double(inner) * sizeof(T);
  parallel_for(columns, weight_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c)
      project_gradient(sums, w, c, a.threshold[c], inner, grad_weight + c * inner);
  });
}

}  // namespace

void lipschitz_linear_backward(const LipschitzLinearBackward& a) {
  if (a.dtype == DType::float32)
    backward<float>(a);
  else
    backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
