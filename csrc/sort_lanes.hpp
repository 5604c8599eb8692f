// The sort of two vectors, lane by lane, and its bits.
#pragma once

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

// Notes the lanes that it swaps.
template <class T>
struct SortLanes {
  typename Simd<T>::Mask& swapped;
  LIPVAE_INLINE void operator()(typename Simd<T>::V& low, typename Simd<T>::V& high) const {
    const typename Simd<T>::V a = low, b = high;
    swapped = Simd<T>::greater(a, b);
    low = Simd<T>::min(b, a);
    high = Simd<T>::max(a, b);
  }
};

constexpr int word_bits = 64;

// The bits of the whole vectors among elements start to end, at most word_bits: sort(i, swapped) sorts those from i on.
template <class T, class Sort>
LIPVAE_INLINE std::uint64_t sort_word(std::int64_t start, std::int64_t end, Sort&& sort) {
  using S = Simd<T>;
  std::uint64_t word = 0;
  typename S::Mask swapped[4];
  if (end - start == word_bits) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < word_bits; i += 4 * S::lanes) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sort(start + i + u * S::lanes, swapped[u]);
      word |= S::movemask4(swapped) << i;
    }
  } else {
    for (std::int64_t i = start; i + S::lanes <= end; i += S::lanes) {
      sort(i, swapped[0]);
      word |= std::uint64_t(S::movemask(swapped[0])) << (i - start);
    }
  }
  return word;
}

}  // namespace lipvae::LIPVAE_ISA
