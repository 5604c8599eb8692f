// The gradients of the Lipschitz layer. Where the projection left few entries, only they are asked for of the
// weight's gradient. Otherwise P(weight) is made again, a block at a time, and never lies in memory as a whole;
// the weight's gradient is projected while its block is in the cache.
#include "isa_kernels.hpp"
#include "l1_gradient.hpp"
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
void backward_listed(const LipschitzLinearBackward& a, const T* grad) {
  using S = Simd<T>;
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

// A panel of `columns` columns of rows that lie `inner` apart.
template <class T>
void copy_panel(const T* rows, std::int64_t count, std::int64_t inner, std::int64_t columns, T* panel) {
  constexpr int width = Panel<T>::width;
  const std::int64_t filled = columns < width ? columns : width;
  fill_row(panel, width, T(0));
  for (std::int64_t r = 0; r < count; ++r) {
    T* const to = panel + (1 + r) * width;
    __builtin_memcpy(to, rows + r * inner, std::size_t(filled) * sizeof(T));
    for (std::int64_t c = filled; c < width; ++c) to[c] = T(0);
  }
}

constexpr std::int64_t weight_block = 48;  // rows of the weight's gradient: whole strips
constexpr std::int64_t most_terms = 256;   // of one pass over that gradient

template <class T>
void weight_gradient(const LipschitzLinearBackward& a, const T* grad) {
  using P = Panel<T>;
  const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight);
  T* const out = static_cast<T*>(a.grad_weight);
  const std::int64_t rows = a.rows, columns = a.columns, inner = a.inner, count = P::count(inner);
  const std::int64_t most = rows < most_terms ? rows : most_terms;
  const Scratch scratch((count * P::size(most) + columns * most) * std::int64_t(sizeof(T)));
  T* const panels = static_cast<T*>(scratch.get());
  T* const across = panels + count * P::size(most);  // grad, transposed
  std::int64_t first = 0;
  do {
    const std::int64_t terms = rows - first < most ? rows - first : most, size = P::size(terms);
    const bool last = first + terms == rows;
    const double x_bytes = 2.0 * double(terms) * double(inner) * sizeof(T);
    const double grad_bytes = 2.0 * double(terms) * double(columns) * sizeof(T);
    parallel_for(count, x_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p)
        copy_panel(x + first * inner + p * P::width, terms, inner, inner - p * P::width, panels + p * size);
    });
    for_each_line<T>(columns, grad_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      transpose(grad + first * columns + begin, columns, terms, end - begin, across + begin * terms, terms);
    });
    const double bytes = 3.0 * double(columns) * double(inner) * sizeof(T) + product_bytes<T>(columns, terms, inner);
    for_each_line<T>(columns, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; c += weight_block) {
        const std::int64_t filled = end - c < weight_block ? end - c : weight_block;
        const Ahead ahead = Ahead::of(weight + c * inner, last ? filled * inner : 0);
        T* const to = out + c * inner;
        multiply<T>({{1, filled}, {across + c * terms, terms, 0}, terms, panels, inner, false, {to, inner, 0},
                     first > 0, ahead}, false);
        for (std::int64_t i = 0; last && i < filled; ++i)
          gradient_row(to + i * inner, weight + (c + i) * inner, inner, a.threshold[c + i], to + i * inner, false);
      }
    });
    first += terms;
  } while (first < rows);
}

// Panels, `size` apart, of `columns` columns of P(weight) as they lie, of `count` rows that lie `inner` apart.
template <class T>
void project_panels(const T* weight, const double* threshold, std::int64_t count, std::int64_t inner,
                    std::int64_t columns, std::int64_t size, T* panels) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int width = Panel<T>::width;
  for (std::int64_t i = 0; i < columns; i += width) fill_row(panels + i / width * size, width, T(0));
  for (std::int64_t r = 0; r < count; ++r, weight += inner) {
    const double tau = threshold[r];
    const SoftThreshold<T> soft(split(tau, T()));
    T* to = panels + (1 + r) * width;
    for (std::int64_t i = 0; i < columns; i += width, to += size)
#pragma GCC unroll 4
      for (int v = 0; v < width; v += S::lanes) {
        const T* const from = weight + i + v;
        const std::int64_t left = columns - i - v;
        V w = left >= S::lanes ? S::load(from) : left > 0 ? S::load_first(from, left) : V{};
        if (tau > 0.0) w = S::keep(soft.active(w), soft.shrink(w));
        if (tau != tau) w = S::splat(T(tau));
        S::store(to + v, w);
      }
  }
}

// For rows and columns of x that are a thread's.
template <class T>
void input_gradient(const LipschitzLinearBackward& a, const T* grad, std::int64_t begin, std::int64_t end,
                    std::int64_t first, std::int64_t last) {
  using P = Panel<T>;
  // Panels of at least four lines of a row: alone, a line of a row of the weight costs as much.
  constexpr std::int64_t row_bytes = P::width * std::int64_t(sizeof(T)), some = row_bytes < 256 ? 256 / row_bytes : 1;
  const T* weight = static_cast<const T*>(a.weight);
  T* const out = static_cast<T*>(a.grad_x);
  const std::int64_t columns = a.columns, inner = a.inner, panels = P::count(inner);
  const std::int64_t depth = columns < P::depth ? columns : P::depth, most = P::batch(inner);
  const Scratch scratch(some * P::size(depth) * std::int64_t(sizeof(T)));
  T* const projected = static_cast<T*>(scratch.get());
  for (std::int64_t row = begin; row < end; row += most) {
    const std::int64_t rows = end - row < most ? end - row : most;
    std::int64_t c = 0;
    do {
      const std::int64_t terms = columns - c < depth ? columns - c : depth, left = columns - c - terms;
      const Ahead ahead = Ahead::of(weight + (c + terms) * inner, (left < depth ? left : depth) * inner);
      for (std::int64_t p = first; p < last; p += some) {
        const std::int64_t i = p * P::width, until = (p + some < last ? p + some : last) * P::width;
        const std::int64_t width = (until < inner ? until : inner) - i;
        project_panels(weight + c * inner + i, a.threshold + c, terms, inner, width, P::size(terms), projected);
        multiply<T>({{1, rows}, {grad + row * columns + c, columns, 0}, terms, projected, width, false,
                     {out + row * inner + i, inner, 0}, c > 0,
                     ahead.share(p / some, (panels + some - 1) / some)}, false);
      }
      c += terms;
    } while (c < columns);
  }
}

template <class T>
void input_gradient(const LipschitzLinearBackward& a, const T* grad) {
  const std::int64_t panels = Panel<T>::count(a.inner), most = Panel<T>::batch(a.inner);
  const std::int64_t tiles = (a.rows + most - 1) / most;
  const double bytes = double(a.columns) * double(a.inner) * sizeof(T) + product_bytes<T>(a.rows, a.columns, a.inner);
  if (tiles >= a.threads)
    parallel_for(tiles, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      input_gradient(a, grad, begin * most, end * most < a.rows ? end * most : a.rows, 0, panels);
    });
  else
    parallel_for(panels, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      input_gradient(a, grad, 0, a.rows, begin, end);
    });
}

template <class T>
void bias_gradient(const LipschitzLinearBackward& a, const T* grad) {
  T* const out = static_cast<T*>(a.grad_bias);
  const std::int64_t rows = a.rows, columns = a.columns;
  const Scratch scratch(columns * std::int64_t(sizeof(double)));
  double* const total = static_cast<double*>(scratch.get());
  const double bytes = double(rows) * double(columns) * sizeof(T);
  for_each_line<T>(columns, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) total[c] = 0.0;
    for (std::int64_t first = 0; first < rows; first += most_terms) {
      for (std::int64_t c = begin; c < end; ++c) out[c] = T(0);
      for (std::int64_t r = first; r < rows && r < first + most_terms; ++r)
        for (std::int64_t c = begin; c < end; ++c) out[c] += grad[r * columns + c];
      for (std::int64_t c = begin; c < end; ++c) total[c] += double(out[c]);
    }
    for (std::int64_t c = begin; c < end; ++c) out[c] = T(total[c]);
  });
}

template <class T>
void backward(const LipschitzLinearBackward& a) {
  const T* grad = static_cast<const T*>(a.grad);
  const Scratch unsorted(a.code ? a.rows * a.columns * std::int64_t(sizeof(T)) : 0);
  if (a.code) {
    group_sort_backward({grad, a.code, unsorted.get(), a.rows, a.columns, 1, a.group_size, a.dtype, a.threads});
    grad = static_cast<const T*>(unsorted.get());
  }
  if (a.grad_bias) bias_gradient(a, grad);
  if (a.entries) {
    if (a.grad_x || a.grad_weight) backward_listed(a, grad);
    return;
  }
  if (a.grad_weight) weight_gradient(a, grad);
  if (a.grad_x) input_gradient(a, grad);
}

}  // namespace

void lipschitz_linear_backward(const LipschitzLinearBackward& a) {
  if (a.dtype == DType::float32)
    backward<float>(a);
  else
    backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
