#include "isa_kernels.hpp"
#include "l1_project.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T, class Fetch>
void project(const L1Ball& a, double bytes, Fetch fetch) {
  const bool streaming = a.out && streams(a.out, bytes, sizeof(T));
  parallel_for(a.rows, 4.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    RowProjector<T, Fetch> rows(a.cols, a.radius, fetch);
    const T* weight = static_cast<const T*>(a.weight) + begin * a.cols;
    T* out = a.out ? static_cast<T*>(a.out) + begin * a.cols : nullptr;
    const double* warm = a.warm ? a.warm + begin : nullptr;
    rows.project(weight, end - begin, warm, out, a.threshold + begin, streaming);
    if (streaming) stream_fence();
  });
}

template <class T>
void project(const L1Ball& a) {
  const double bytes = double(a.rows) * double(a.cols) * sizeof(T);
  if (bytes > distant_bytes)
    project<T>(a, bytes, FetchLines());
  else
    project<T>(a, bytes, FetchHalves(bytes > fetched_bytes));
}

}  // namespace

void l1_ball(const L1Ball& a) {
  if (a.dtype == DType::float32)
    project<float>(a);
  else
    project<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
