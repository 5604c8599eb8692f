// importance for the family categorical256.
#include "categorical256.hpp"
#include "isa_kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
void row_gradient(const T* logits, const T* target, T g, T* grad, std::int64_t dim, bool streaming) {
  using S = Simd<T>;
  using V = typename S::V;
  RunningSums<T> state;
  for (std::int64_t first = 0; first < dim; first += state_dims) {
    const std::int64_t count = dim - first < state_dims ? dim - first : state_dims;
    running_sums(logits, dim, first, count, state);
    for (std::int64_t i = 0; i < count; ++i) state.sum[i] = -g / state.sum[i];
    for (int level = 0; level < levels; ++level) {
      const T* from = logits + level * dim + first;
      T* to = grad + level * dim + first;
      std::int64_t i = 0;
      for (; i + S::lanes <= count; i += S::lanes) {
        const V value = S::load(state.sum + i) * exp<T>(S::load(from + i) - S::load(state.max + i));
        if (streaming)
          S::stream(to + i, value);
        else
          S::store(to + i, value);
      }
      for (; i < count; i += S::lanes) {
        const std::int64_t rest = count - i;
        const V value = S::load_first(state.sum + i, rest) *
                        exp<T>(S::load_first(from + i, rest) - S::load_first(state.max + i, rest));
        S::store_first(to + i, value, rest);
      }
    }
    if (streaming) stream_fence();
    for (std::int64_t i = 0; i < count; ++i) grad[level_of(target[first + i]) * dim + first + i] += g;
  }
}

template <class T>
void forward(const Importance& a) {
  const T* parameters = static_cast<const T*>(a.parameters);
  const T* target = static_cast<const T*>(a.target);
  T* out = static_cast<T*>(a.out);
  const std::int64_t rows = a.samples * a.batch;
  const double bytes = double(rows) * double(a.dim) * levels * sizeof(T);
  parallel_for(rows, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      out[row] = T(categorical_log_likelihood(parameters + row * levels * a.dim, a.dim,
                                              target + row % a.batch * a.dim, a.dim));
  });
}

template <class T>
void backward(const ImportanceBackward& a) {
  const T* parameters = static_cast<const T*>(a.parameters);
  const T* target = static_cast<const T*>(a.target);
  const T* grad_out = static_cast<const T*>(a.grad_out);
  T* grad = static_cast<T*>(a.grad_parameters);
  const std::int64_t rows = a.samples * a.batch;
  const double bytes = double(rows) * double(a.dim) * levels * sizeof(T);
  const bool streaming = streams(grad, bytes, vector_bytes) && a.dim % Simd<T>::lanes == 0;
  parallel_for(rows, 2.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      row_gradient(parameters + row * levels * a.dim, target + row % a.batch * a.dim, grad_out[row],
                   grad + row * levels * a.dim, a.dim, streaming);
  });
}

}  // namespace

void categorical256(const Importance& a) {
  if (a.dtype == DType::float32)
    forward<float>(a);
  else
    forward<double>(a);
}

void categorical256_backward(const ImportanceBackward& a) {
  if (a.dtype == DType::float32)
    backward<float>(a);
  else
    backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
