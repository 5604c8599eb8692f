// The Lipschitz layer. While a panel of the projected weight is in the cache, the first tile of rows is
// multiplied by it; further rows read the panels again.
#include <new>

#include "isa_kernels.hpp"
#include "l1_project.hpp"
#include "panels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Memory without a value, from the start of a cache line on.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes) : memory_(operator new(std::size_t(bytes), std::align_val_t(64))) {}
  ~Scratch() { operator delete(memory_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_;
};

template <class T>
void forward(const LipschitzLinear& a) {
  using P = Panel<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y);
  const std::int64_t columns = a.columns, inner = a.inner;
  const std::int64_t count = P::count(columns), size = P::size(inner), rows_size = P::width * inner;
  const std::int64_t first = a.rows < P::tile ? a.rows : P::tile;
  // What nobody asks for lies in a part of the scratch that each thread writes again and again: it stays in
  // the cache, and the operating system is not asked for pages. Further rows need all panels.
  const bool keeps_panels = a.panels || first < a.rows, keeps_rows = a.projected;
  const std::int64_t parts = a.threads < count ? a.threads : count;
  const std::int64_t part_size = (keeps_panels ? 0 : size) + (keeps_rows ? 0 : rows_size);
  const std::int64_t panels_size = keeps_panels && !a.panels ? count * size : 0;
  const Scratch scratch((panels_size + parts * part_size) * std::int64_t(sizeof(T)));
  T* const parts_begin = static_cast<T*>(scratch.get()) + panels_size;
  T* const panels = static_cast<T*>(a.panels ? a.panels : scratch.get());
  T* const projected = static_cast<T*>(a.projected);
  int next_part = 0;
  const bool fetching = double(columns) * double(inner) * sizeof(T) > fetched_bytes;
  const double bytes = 4.0 * double(columns) * double(inner) * sizeof(T) + product_bytes<T>(first, inner, columns);
  parallel_for(count, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    RowProjector<T> projector(inner, a.radius, fetching);
    T* const part = parts_begin + __atomic_fetch_add(&next_part, 1, __ATOMIC_RELAXED) * part_size;
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t column = p * P::width, left = columns - column;
      const std::int64_t filled = left < P::width ? left : P::width;
      T* const panel = keeps_panels ? panels + p * size : part;
      T* const rows = keeps_rows ? projected + column * inner : keeps_panels ? part : part + size;
      projector.project(weight + column * inner, filled, a.warm ? a.warm + column : nullptr, rows,
                        a.threshold + column, false);
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
