// importance for the family categorical256: log softmax of 256 logits at the grey level 255 x.
//
// The logits of one dimension lie dim apart, so a row is read as 256 planes, a few at a time, with
// the running maximum and sum of each dimension's logsumexp in the first cache.
#include "isa_kernels.hpp"
#include "parallel.hpp"
#include "vector_math.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

constexpr int levels = 256, planes_at_once = 8;
constexpr std::int64_t tile = 1024;  // dimensions whose running state is kept

template <class T>
struct RunningSums {
  alignas(64) T max[tile];
  alignas(64) T sum[tile];  // of exp(logit - max)
};

// load(plane, i) and the state of the vector of dimensions at i.
template <class T, class Load>
LIPVAE_INLINE void merge_planes(typename Simd<T>::V& max, typename Simd<T>::V& sum, Load&& load) {
  using S = Simd<T>;
  typename S::V logit[planes_at_once];
  typename S::V highest = max;
#pragma GCC unroll 8
  for (int j = 0; j < planes_at_once; ++j) {
    logit[j] = load(j);
    highest = S::max(logit[j], highest);  // a NaN leaves highest and shows in the sum
  }
  sum *= exp_minus<T>(highest - max);
#pragma GCC unroll 8
  for (int j = 0; j < planes_at_once; ++j) sum += exp_minus<T>(highest - logit[j]);
  max = highest;
}

// logsumexp over the levels for `count` dimensions from `first` on: log(sum) + max.
template <class T>
void running_sums(const T* logits, std::int64_t dim, std::int64_t first, std::int64_t count,
                  RunningSums<T>& state) {
  using S = Simd<T>;
  constexpr T lowest = sizeof(T) == 4 ? T(-3.0e38) : T(-1.0e308);
  for (std::int64_t i = 0; i < count; ++i) {
    state.max[i] = lowest;
    state.sum[i] = T(0);
  }
  for (int level = 0; level < levels; level += planes_at_once) {
    const T* plane = logits + level * dim + first;
    std::int64_t i = 0;
    for (; i + S::lanes <= count; i += S::lanes) {
      typename S::V max = S::load(state.max + i), sum = S::load(state.sum + i);
      merge_planes<T>(max, sum, [&](int j) { return S::load(plane + j * dim + i); });
      S::store(state.max + i, max);
      S::store(state.sum + i, sum);
    }
    if (i < count) {
      const std::int64_t rest = count - i;
      typename S::V max = S::load_first(state.max + i, rest), sum = S::load_first(state.sum + i, rest);
      merge_planes<T>(max, sum, [&](int j) { return S::load_first(plane + j * dim + i, rest); });
      S::store_first(state.max + i, max, rest);
      S::store_first(state.sum + i, sum, rest);
    }
  }
}

template <class T>
LIPVAE_INLINE std::int64_t level_of(T x) {
  const std::int64_t level = __builtin_lrint(double(x * T(255)));
  return level < 0 ? 0 : level > 255 ? 255 : level;
}

template <class T>
double row_log_likelihood(const T* logits, const T* target, std::int64_t dim) {
  RunningSums<T> state;
  double total = 0.0;
  for (std::int64_t first = 0; first < dim; first += tile) {
    const std::int64_t count = dim - first < tile ? dim - first : tile;
    running_sums(logits, dim, first, count, state);
    // The sums lie in [1, 256], so their logs are taken a hundred at a time.
    double product = 1.0;
    for (std::int64_t i = 0; i < count; ++i) {
      const T logit = logits[level_of(target[first + i]) * dim + first + i];
      total += double(logit) - double(state.max[i]);
      product *= double(state.sum[i]);
      if (i % 96 == 95) {
        total -= __builtin_log(product);
        product = 1.0;
      }
    }
    total -= __builtin_log(product);
  }
  return total;
}

template <class T>
void row_gradient(const T* logits, const T* target, T g, T* grad, std::int64_t dim, bool streaming) {
  using S = Simd<T>;
  using V = typename S::V;
  RunningSums<T> state;
  for (std::int64_t first = 0; first < dim; first += tile) {
    const std::int64_t count = dim - first < tile ? dim - first : tile;
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
      out[row] = T(row_log_likelihood(parameters + row * levels * a.dim,
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
