#include "isa_kernels.hpp"
#include "l1_project.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
void project(const L1Ball& a) {
  const double bytes = double(a.rows) * double(a.cols) * sizeof(T);
  const bool streaming = a.out && streams(a.out, bytes, sizeof(T));
  parallel_for(a.rows, 4.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const RowProblem<T> row{static_cast<const T*>(a.weight) + r * a.cols, a.cols, a.radius};
      T* out = a.out ? static_cast<T*>(a.out) + r * a.cols : nullptr;
      a.threshold[r] = project_row(row, a.warm ? a.warm[r] : 0.0, out, streaming);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void l1_ball(const L1Ball& a) {
  if (a.dtype == DType::float32)
    project<float>(a);
  else
    project<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
