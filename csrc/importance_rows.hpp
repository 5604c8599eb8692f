// Log densities of whole rows of parameters, summed over the dimensions.
#pragma once

#include "bernoulli.hpp"
#include "families.hpp"

namespace lipvae::LIPVAE_ISA {

// The log density of so many dimensions goes through one logarithm.
template <class Family, class T>
constexpr std::int64_t block_length() {
  constexpr int streams = 2;  // independent chains of sums and products: more spill registers
  constexpr int factors = Family::uses_growing && Family::scaled_sign ? 2 : 1;  // in a dimension
  constexpr int by_lane = streams * max_lane_factors, by_sum = max_factors / Simd<T>::lanes;
  constexpr int vectors = (by_lane < by_sum ? by_lane : by_sum) / factors / streams * streams;
  return std::int64_t(vectors) * Simd<T>::lanes;
}

// Sum of the log density over the dimensions [start, end), a block, of one sample of one input. The
// parameters of a dimension lie `stride` apart.
template <class Family, class T>
double block_log_likelihood(const T* parameters, std::int64_t stride, const T* target, std::int64_t start,
                            std::int64_t end) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int streams = 2;
  typename Simd<double>::V total = {};
  double logs = Family::constant * double(end - start);
  V linear[streams] = {};
  GrowingProduct<T> growing[streams];
  ScaledProduct<T> scaled[streams];
  auto add = [&](std::int64_t i, int s) {
    V p[Family::planes];
    for (int plane = 0; plane < Family::planes; ++plane) p[plane] = S::load(parameters + plane * stride + i);
    const Block<T> block{linear[s], growing[s], scaled[s]};
    Family::template add<false>(block, p, S::load(target + i), typename S::I{});
  };
  const std::int64_t ahead = reading_ahead;
  std::int64_t i = start;
  for (; i + streams * S::lanes <= end; i += streams * S::lanes) {
    for (int plane = 0; plane < Family::planes; ++plane)
      prefetch_at<streams * vector_bytes>(parameters + plane * stride + i, ahead);
#pragma GCC unroll 2
    for (int s = 0; s < streams; ++s) add(i + s * S::lanes, s);
  }
  for (; i + S::lanes <= end; i += S::lanes) add(i, 0);
  if (i < end) {
    V p[Family::planes];
    for (int plane = 0; plane < Family::planes; ++plane)
      p[plane] = S::load_first(parameters + plane * stride + i, end - i);
    const Block<T> block{linear[1], growing[1], scaled[1]};
    Family::template add<true>(block, p, S::load_first(target + i, end - i), S::first(end - i));
  }
  for (int s = 0; s < streams; ++s) for_each_double<T>(linear[s], [&](auto part) { total += part; });
  if constexpr (Family::uses_growing) logs -= GrowingProduct<T>::log(growing);
  if constexpr (Family::scaled_sign != 0) logs += Family::scaled_sign * ScaledProduct<T>::log(scaled);
  return add_lanes<double>(total) + logs;
}

// Sum of the log density over the dimensions of one sample of one input. Its order depends on the row
// alone.
template <class Family, class T>
double row_log_likelihood(const T* parameters, std::int64_t stride, const T* target, std::int64_t dim) {
  constexpr std::int64_t length = block_length<Family, T>();
  double total = 0.0;
  for (std::int64_t start = 0; start < dim; start += length) {
    const std::int64_t end = dim - start < length ? dim : start + length;
    total += block_log_likelihood<Family>(parameters, stride, target, start, end);
  }
  return total;
}

// Bernoulli in float32, several rows at a time. What one gets does not depend on the others.
template <int rows>
LIPVAE_INLINE void bernoulli_rows(const float* logits, std::int64_t stride, const Targets<rows>& target,
                                  std::int64_t dim, double (&total)[rows]) {
  constexpr std::int64_t length = bernoulli_block_length;
  for (int r = 0; r < rows; ++r) total[r] = 0.0;
  for (std::int64_t start = 0; start < dim; start += length) {
    const std::int64_t end = dim - start < length ? dim : start + length;
    double sum[rows];
    bernoulli_block<rows>(logits, stride, target, start, end - start, sum);
    for (int r = 0; r < rows; ++r) {
      if (sum[r] != sum[r])
        sum[r] = block_log_likelihood<Bernoulli<float>>(logits + r * stride, dim, target.row[r], start, end);
      total[r] += sum[r];
    }
  }
}

}  // namespace lipvae::LIPVAE_ISA
