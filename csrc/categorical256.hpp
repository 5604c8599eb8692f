// Log softmax of 256 logits at the grey level 255 x.
//
// The logits of one dimension lie a stride apart, so a row is read as 256 planes, a few at a time, with
// the running maximum and sum of each dimension's logsumexp in the first cache.
#pragma once

#include "vector_math.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr int levels = 256, planes_at_once = 8;
constexpr std::int64_t state_dims = 1024;  // dimensions whose running state is kept

template <class T>
constexpr T lowest_logit = sizeof(T) == 4 ? T(-3.0e38) : T(-1.0e308);

template <class T>
struct RunningSums {
  alignas(64) T max[state_dims];
  alignas(64) T sum[state_dims];  // of exp(logit - max)
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
void running_sums(const T* logits, std::int64_t stride, std::int64_t first, std::int64_t count,
                  RunningSums<T>& state) {
  using S = Simd<T>;
  for (std::int64_t i = 0; i < count; ++i) {
    state.max[i] = lowest_logit<T>;
    state.sum[i] = T(0);
  }
  for (int level = 0; level < levels; level += planes_at_once) {
    const T* plane = logits + level * stride + first;
    std::int64_t i = 0;
    for (; i + S::lanes <= count; i += S::lanes) {
      typename S::V max = S::load(state.max + i), sum = S::load(state.sum + i);
      merge_planes<T>(max, sum, [&](int j) { return S::load(plane + j * stride + i); });
      S::store(state.max + i, max);
      S::store(state.sum + i, sum);
    }
    if (i < count) {
      const std::int64_t rest = count - i;
      typename S::V max = S::load_first(state.max + i, rest), sum = S::load_first(state.sum + i, rest);
      merge_planes<T>(max, sum, [&](int j) { return S::load_first(plane + j * stride + i, rest); });
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

// The sum over `count` dimensions of logit(i) - max - log(sum).
template <class T, class Logit>
double log_softmax(std::int64_t count, const T* max, const T* sum, Logit&& logit) {
  double total = 0.0;
  // The sums lie in [1, 256], so their logs are taken a hundred at a time.
  double product = 1.0;
  for (std::int64_t i = 0; i < count; ++i) {
    total += double(logit(i)) - double(max[i]);
    product *= double(sum[i]);
    if (i % 96 == 95) {
      total -= __builtin_log(product);
      product = 1.0;
    }
  }
  return total - __builtin_log(product);
}

template <class T>
double categorical_log_likelihood(const T* logits, std::int64_t stride, const T* target, std::int64_t dim) {
  RunningSums<T> state;
  double total = 0.0;
  for (std::int64_t first = 0; first < dim; first += state_dims) {
    const std::int64_t count = dim - first < state_dims ? dim - first : state_dims;
    running_sums(logits, stride, first, count, state);
    total += log_softmax(count, state.max, state.sum, [&](std::int64_t i) {
      return logits[level_of(target[first + i]) * stride + first + i];
    });
  }
  return total;
}

}  // namespace lipvae::LIPVAE_ISA
