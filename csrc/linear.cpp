#include "isa_kernels.hpp"
#include "panels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {

template void multiply(const Product<float>&, bool);
template void multiply(const Product<double>&, bool);

namespace {

template <class T>
void pack(const LinearPack& a) {
  using P = Panel<T>;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* panels = static_cast<T*>(a.panels);
  const std::int64_t in_plane = P::count(a.columns), count = a.planes * in_plane;
  const double bytes = 4.0 * double(count) * double(P::size(a.inner)) * sizeof(T);
  parallel_for(count, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t column = p % in_plane * P::width, first = p / in_plane * a.plane_stride + column;
      pack_panel(weight + first * a.inner, bias ? bias + first : nullptr, a.columns - column, a.inner,
                 panels + p * P::size(a.inner));
      mark_not_finite(panels + p * P::size(a.inner), a.inner);
    }
  });
}

template <class T>
void apply(const Linear& a) {
  using P = Panel<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* panels = static_cast<const T*>(a.panels);
  T* out = static_cast<T*>(a.out);
  const RowUnits units(a.rows, a.together, P::rows, a.threads);
  const std::int64_t code_bytes = a.group_size ? (a.columns / a.group_size + 7) / 8 : 0;  // of a row
  const std::int64_t code_stride = a.code_stride ? a.code_stride : a.rows * code_bytes;
  const std::int64_t fit = P::tile(a.inner) / units.size, tile = fit > 1 ? fit : 1;
  const double bytes = product_bytes<T>(a.rows, a.inner, a.columns);
  parallel_for(units.count, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; unit += tile) {
      const std::int64_t row = units.end(unit), rows = units.end(unit + tile < end ? unit + tile : end) - row;
      T* const to = out + row * a.columns;
      multiply<T>({units.counts(rows), {x + row * a.inner, a.inner, units.size * a.inner}, a.inner, panels,
                   a.columns, a.relu, {to, a.columns, units.size * a.columns}}, true);
      if (a.group_size)
        group_sort({to, to, a.code ? a.code + row * code_bytes : nullptr, rows, a.columns, 1, a.group_size,
                    a.dtype, 1, code_stride});
    }
  });
}

}  // namespace

std::int64_t panel_width(DType dtype) {
  return dtype == DType::float32 ? Panel<float>::width : Panel<double>::width;
}

void linear_pack(const LinearPack& a) {
  if (a.dtype == DType::float32)
    pack<float>(a);
  else
    pack<double>(a);
}

void linear(const Linear& a) {
  if (a.columns == 0) return;
  if (a.dtype == DType::float32)
    apply<float>(a);
  else
    apply<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
