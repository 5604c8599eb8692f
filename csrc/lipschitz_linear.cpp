// The Lipschitz layer. While a panel of the projected weight is in the cache, the first tile of rows is
// multiplied by it; further rows read the panels again.
#include "isa_kernels.hpp"
#include "l1_project.hpp"
#include "panels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
void forward(const LipschitzLinear& a) {
  using P = Panel<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T *y = static_cast<T*>(a.y), *panels = static_cast<T*>(a.panels), *projected = static_cast<T*>(a.projected);
  const std::int64_t columns = a.columns, inner = a.inner, size = P::size(inner);
  const std::int64_t first = a.rows < P::tile ? a.rows : P::tile;
  const bool keep_panels = a.keep_panels || first < a.rows;
  const double bytes = 4.0 * double(columns) * double(inner) * sizeof(T) + product_bytes<T>(first, inner, columns);
  parallel_for(P::count(columns), bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t column = p * P::width, left = columns - column;
      const std::int64_t filled = left < P::width ? left : P::width;
      // What is not kept is written over what came before, which is still in the cache.
      T* panel = panels + (keep_panels ? p : begin) * size;
      T* rows = projected + (a.keep_projected ? p : begin) * P::width * inner;
      for (std::int64_t c = 0; c < filled; ++c) {
        const RowProblem<T> row{weight + (column + c) * inner, inner, a.radius};
        a.threshold[column + c] = project_row(row, a.warm ? a.warm[column + c] : 0.0, rows + c * inner, false);
      }
      pack_panel(rows, bias ? bias + column : nullptr, filled, inner, panel);
      multiply(x, first, inner, panel, filled, false, y + column, columns);
    }
  });
  const std::int64_t code_bytes = a.group_size ? (columns / a.group_size + 7) / 8 : 0;  // of a row
  if (a.group_size)
    group_sort({y, y, a.code, first, columns, 1, a.group_size, a.dtype, a.threads, a.rows * code_bytes});
  linear({x + first * inner, panels, y + first * columns, a.rows - first, columns, inner, false, a.dtype,
          a.threads, a.group_size, a.code ? a.code + first * code_bytes : nullptr, a.rows * code_bytes});
}

}  // namespace

void lipschitz_linear(const LipschitzLinear& a) {
  if (a.dtype == DType::float32)
    forward<float>(a);
  else
    forward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
