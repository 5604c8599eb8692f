#include "isa_kernels.hpp"
#include "l1_gradient.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
void backward(const L1BallBackward& a) {
  const double bytes = double(a.rows) * double(a.cols) * sizeof(T);
  const bool streaming = streams(a.grad_weight, bytes, sizeof(T));
  parallel_for(a.rows, 3.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t at = r * a.cols;
      gradient_row(static_cast<const T*>(a.grad) + at, static_cast<const T*>(a.weight) + at, a.cols, a.threshold[r],
                   static_cast<T*>(a.grad_weight) + at, streaming);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void l1_ball_backward(const L1BallBackward& a) {
  if (a.dtype == DType::float32)
    backward<float>(a);
  else
    backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
