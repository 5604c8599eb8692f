// The Lipschitz layer. A weight of which the projection leaves little, as training makes it, becomes a list
// of entries. Any other is projected a few rows at a time and multiplied while these are in the cache: with
// panels of x, if x has the rows of a usual batch, or else packed themselves, for further rows to read again.
#include "isa_kernels.hpp"
#include "scratch.hpp"
#include "sparse_rows.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Whether each of the first rows of P(weight) has more entries than a list has places for.
template <class T>
bool seems_dense(const LipschitzLinear& a) {
  const T* weight = static_cast<const T*>(a.weight);
  const std::int64_t rows = a.columns < 2 ? a.columns : 2;
  RowProjector<T>(a.inner, a.radius, FetchHalves(false)).project(weight, rows, a.warm, nullptr, a.threshold, false);
  bool dense = rows > 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const double tau = a.threshold[r];
    const std::int64_t entries = tau > 0.0 ? row_count(weight + r * a.inner, a.inner, round_down(tau, T())) : a.inner;
    dense = dense && entries > entries_places(1, a.inner);
  }
  return dense;
}

// Lists the entries of P(weight), and writes the thresholds; false if there are too many.
template <class T>
bool list(const LipschitzLinear& a, const Entries<T>& to) {
  constexpr std::int64_t block = 16;  // rows projected one after the other
  // Rows that share their room, or more at the end. They are the same whatever the threads, and so is what fits.
  constexpr std::int64_t group = 4 * block;
  const T* weight = static_cast<const T*>(a.weight);
  const std::int64_t columns = a.columns, inner = a.inner, groups = columns < group ? 1 : columns / group;
  const double bytes = 2.0 * double(columns) * double(inner) * sizeof(T);
  const bool fetching = double(columns) * double(inner) * sizeof(T) > fetched_bytes;
  bool fits = true;
  parallel_for(groups, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    RowProjector<T> projector(inner, a.radius, FetchHalves(fetching));
    const std::int64_t last = end < groups ? end * group : columns;
    std::int64_t at = 0;
    for (std::int64_t c = begin * group; c < last;) {
      if (c % group == 0 && c < groups * group) at = entries_places(c, inner);
      const std::int64_t count = last - c < block ? last - c : block;
      projector.project(weight + c * inner, count, a.warm ? a.warm + c : nullptr, nullptr, a.threshold + c,
                        false);
      // As if the rows behind were as full.
      const std::int64_t rest = entries_places(c + count, inner);
      for (const std::int64_t next = c + count; c < next && at >= 0; ++c)
        at = list_row(weight + c * inner, inner, a.threshold[c], to, c, at, rest);
      if (at < 0) __atomic_store_n(&fits, false, __ATOMIC_RELAXED);
      if (!__atomic_load_n(&fits, __ATOMIC_RELAXED)) return;
    }
  });
  return fits;
}

template <class T>
void multiply_listed(const LipschitzLinear& a, const Entries<T>& w) {
  constexpr std::int64_t lanes = Simd<T>::lanes;
  const T* x = static_cast<const T*>(a.x);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y);
  const std::int64_t rows = a.rows, columns = a.columns, inner = a.inner;
  const Scratch scratch(inner * Tile<T>::at(0, rows).width() * std::int64_t(sizeof(T)));
  T* const side_by_side = static_cast<T*>(scratch.get());
  for (Tile<T> tile = Tile<T>::at(0, rows); tile.rows > 0; tile = Tile<T>::at(tile.first + tile.rows, rows)) {
    const std::int64_t width = tile.width();
    lay_side_by_side(x, inner, tile, a.threads, side_by_side);
    const double bytes = 2.0 * double(columns) * double(width) * sizeof(T);
    parallel_for((columns + lanes - 1) / lanes, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      T sums[lanes * Tile<T>::most_rows];
      for (std::int64_t block = begin; block < end; ++block) {
        const std::int64_t c = block * lanes, count = columns - c < lanes ? columns - c : lanes;
        with_vectors(tile, [&](auto vectors) {
          for (std::int64_t i = 0; i < count; ++i)
            multiply_entries<decltype(vectors)::value>(side_by_side, w, c + i, inner,
                                                       bias ? bias[c + i] : T(0), sums + i * width);
        });
        transpose(sums, width, count, tile.rows, y + tile.first * columns + c, columns);
      }
    });
    if (all_finite(x + tile.first * inner, tile.rows * inner)) continue;
    for (std::int64_t r = tile.first; r < tile.first + tile.rows; ++r)
      if (!all_finite(x + r * inner, inner))
        multiply_all(x + r * inner, w, columns, inner, bias, y + r * columns);
  }
  if (a.group_size)
    group_sort({y, y, a.code, rows, columns, 1, a.group_size, a.dtype, a.threads, 0});
}

// Whether P(weight) could be listed, and y is there.
template <class T>
bool forward_listed(const LipschitzLinear& a) {
  if (a.panels || a.inner >= std::int64_t{1} << 31 || seems_dense<T>(a)) return false;
  const Scratch scratch(a.entries ? 0 : entries_bytes(a.columns, a.inner, a.dtype));
  const Entries<T> entries(a.entries ? a.entries : scratch.get(), a.columns, a.inner);
  if (!list(a, entries)) return false;
  multiply_listed(a, entries);
  return true;
}

template <class T>
double packed_bytes(const LipschitzLinear& a, std::int64_t rows) {
  return 4.0 * double(a.columns) * double(a.inner) * sizeof(T) + product_bytes<T>(rows, a.inner, a.columns);
}

// Whether the rows of x are few and fill their vectors, but for a sixteenth.
template <class T>
bool suits_panels(std::int64_t rows, std::int64_t inner) {
  constexpr std::int64_t lanes = Simd<T>::lanes;
  const std::int64_t fit = 2 * Panel<T>::tile(inner), most = fit < 128 ? 128 : fit < 256 ? fit : 256;
  return rows <= most && 16 * ((rows + lanes - 1) / lanes * lanes) <= 17 * rows;
}

// A row of P(weight) multiplies panels of x as a row of x would multiply panels of P(weight): the same sums.
template <class T>
void forward_beside(const LipschitzLinear& a) {
  using P = Panel<T>;
  constexpr std::int64_t block = 48;  // rows of the weight: whole strips
  const T* x = static_cast<const T*>(a.x);
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y);
  const std::int64_t rows = a.rows, columns = a.columns, inner = a.inner;
  const std::int64_t count = P::count(rows), size = P::size(inner), width = count * P::width;
  const std::int64_t parts = a.threads < columns ? a.threads : columns, part_size = block * (width + inner);
  const Scratch scratch((count * size + parts * part_size) * std::int64_t(sizeof(T)));
  T* const panels = static_cast<T*>(scratch.get());
  T* const parts_begin = panels + count * size;
  const double x_bytes = 4.0 * double(rows) * double(inner) * sizeof(T);
  parallel_for(count, x_bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p)
      pack_panel<T>(x + p * P::width * inner, nullptr, rows - p * P::width, inner, panels + p * size);
  });
  int next_part = 0;
  for_each_line<T>(columns, packed_bytes<T>(a, rows), a.threads, [&](std::int64_t begin, std::int64_t end) {
    RowProjector<T> projector(inner, a.radius, FetchHalves(false));
    T* const projected = parts_begin + __atomic_fetch_add(&next_part, 1, __ATOMIC_RELAXED) * part_size;
    T* const product = projected + block * inner;
    for (std::int64_t c = begin; c < end; c += block) {
      const std::int64_t filled = end - c < block ? end - c : block, left = end - c - filled;
      projector.project(weight + c * inner, filled, a.warm ? a.warm + c : nullptr, projected, a.threshold + c,
                        false);
      for (std::int64_t i = 0; i < filled; ++i) fill_row(product + i * width, width, bias ? bias[c + i] : T(0));
      const Ahead following = Ahead::of(weight + (c + filled) * inner, (left < block ? left : block) * inner);
      multiply<T>({{1, filled}, {projected, inner, 0}, inner, panels, rows, false, {product, width, 0}, true,
                   following}, false);
      transpose<T>(product, width, filled, rows, y + c, columns);
    }
  });
  if (a.group_size)
    group_sort({y, y, a.code, rows, columns, 1, a.group_size, a.dtype, a.threads, 0});
}

template <class T>
void forward_packed(const LipschitzLinear& a) {
  using P = Panel<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y);
  const std::int64_t columns = a.columns, inner = a.inner;
  const std::int64_t count = P::count(columns), size = P::size(inner), rows_size = P::width * inner;
  const std::int64_t most = P::batch(inner), first = a.rows < most ? a.rows : most;
  // What nobody asks for lies in a part of the scratch that each thread writes again and again: it stays in
  // the cache, and the operating system is not asked for pages. Further rows need all panels.
  const bool keeps_panels = a.panels || first < a.rows;
  const std::int64_t parts = a.threads < count ? a.threads : count;
  const std::int64_t part_size = rows_size + (keeps_panels ? 0 : size);
  const std::int64_t panels_size = keeps_panels && !a.panels ? count * size : 0;
  const Scratch scratch((panels_size + parts * part_size) * std::int64_t(sizeof(T)));
  T* const parts_begin = static_cast<T*>(scratch.get()) + panels_size;
  T* const panels = static_cast<T*>(a.panels ? a.panels : scratch.get());
  int next_part = 0;
  const bool fetching = double(columns) * double(inner) * sizeof(T) > fetched_bytes;
  parallel_for(count, packed_bytes<T>(a, first), a.threads, [&](std::int64_t begin, std::int64_t end) {
    RowProjector<T> projector(inner, a.radius, FetchHalves(fetching));
    T* const projected = parts_begin + __atomic_fetch_add(&next_part, 1, __ATOMIC_RELAXED) * part_size;
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t column = p * P::width, left = columns - column;
      const std::int64_t filled = left < P::width ? left : P::width;
      T* const panel = keeps_panels ? panels + p * size : projected + rows_size;
      projector.project(weight + column * inner, filled, a.warm ? a.warm + column : nullptr, projected,
                        a.threshold + column, false);
      pack_panel(projected, bias ? bias + column : nullptr, filled, inner, panel);
      if (keeps_panels) mark_not_finite(panel, inner);
      multiply<T>({{1, first}, {x, inner, 0}, inner, panel, filled, false, {y + column, columns, 0}}, false);
    }
  });
  const std::int64_t code_bytes = a.group_size ? (columns / a.group_size + 7) / 8 : 0;  // of a row
  if (a.group_size)
    group_sort({y, y, a.code, first, columns, 1, a.group_size, a.dtype, a.threads, a.rows * code_bytes});
  linear({x + first * inner, panels, y + first * columns, a.rows - first, columns, inner, false, a.dtype,
          a.threads, a.group_size, a.code ? a.code + first * code_bytes : nullptr, a.rows * code_bytes});
}

template <class T>
void forward(const LipschitzLinear& a) {
  const bool listed = forward_listed<T>(a);
  if (a.listed) *a.listed = listed;
  if (listed) return;
  if (!a.panels && suits_panels<T>(a.rows, a.inner))
    forward_beside<T>(a);
  else
    forward_packed<T>(a);
}

}  // namespace

void lipschitz_linear(const LipschitzLinear& a) {
  if (a.dtype == DType::float32)
    forward<float>(a);
  else
    forward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
