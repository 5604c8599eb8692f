#include "isa_kernels.hpp"
#include "networks.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T, int g>
void sort(const GroupSort& a) {
  using N = Network<g>;
  const std::int64_t groups = a.n / g, bytes = (groups * a.inner + 7) / 8;
  parallel_for(a.outer, double(a.outer) * a.n * a.inner * sizeof(T) * 2, a.threads,
               [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* x = static_cast<const T*>(a.x) + o * a.n * a.inner;
      T* y = static_cast<T*>(a.y) + o * a.n * a.inner;
      if (a.code)
        for (int c = 0; c < N::size; ++c)
          for (std::int64_t b = 0; b < bytes; ++b) a.code[(c * a.outer + o) * bytes + b] = 0;
      for (std::int64_t p = 0; p < groups * a.inner; ++p) {
        const std::int64_t base = p / a.inner * g * a.inner + p % a.inner;
        T v[g];
        for (int i = 0; i < g; ++i) v[i] = x[base + i * a.inner];
        for (int c = 0; c < N::size; ++c) {
          const int i = N::comparators[c].low, j = N::comparators[c].high;
          if (v[i] > v[j]) {
            const T t = v[i]; v[i] = v[j]; v[j] = t;
            if (a.code) a.code[(c * a.outer + o) * bytes + p / 8] |= std::uint8_t(1u << (p % 8));
          }
        }
        for (int i = 0; i < g; ++i) y[base + i * a.inner] = v[i];
      }
    }
  });
}

template <class T, int g>
void unsort(const GroupSortBackward& a) {
  using N = Network<g>;
  const std::int64_t groups = a.n / g, bytes = (groups * a.inner + 7) / 8;
  parallel_for(a.outer, double(a.outer) * a.n * a.inner * sizeof(T) * 2, a.threads,
               [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* x = static_cast<const T*>(a.grad_y) + o * a.n * a.inner;
      T* y = static_cast<T*>(a.grad_x) + o * a.n * a.inner;
      for (std::int64_t p = 0; p < groups * a.inner; ++p) {
        const std::int64_t base = p / a.inner * g * a.inner + p % a.inner;
        T v[g];
        for (int i = 0; i < g; ++i) v[i] = x[base + i * a.inner];
        for (int c = N::size; c-- > 0;) {
          const int i = N::comparators[c].low, j = N::comparators[c].high;
          if (a.code[(c * a.outer + o) * bytes + p / 8] >> (p % 8) & 1) {
            const T t = v[i]; v[i] = v[j]; v[j] = t;
          }
        }
        for (int i = 0; i < g; ++i) y[base + i * a.inner] = v[i];
      }
    }
  });
}

template <class T>
void sort_any(const GroupSort& a) {
  a.group_size == 2 ? sort<T, 2>(a) : a.group_size == 4 ? sort<T, 4>(a) : sort<T, 8>(a);
}
template <class T>
void unsort_any(const GroupSortBackward& a) {
  a.group_size == 2 ? unsort<T, 2>(a) : a.group_size == 4 ? unsort<T, 4>(a) : unsort<T, 8>(a);
}

}  // namespace

void group_sort(const GroupSort& a) {
  a.dtype == DType::float32 ? sort_any<float>(a) : sort_any<double>(a);
}
void group_sort_backward(const GroupSortBackward& a) {
  a.dtype == DType::float32 ? unsort_any<float>(a) : unsort_any<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
