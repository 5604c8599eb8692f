// GroupSort of pairs with AVX-512: vectors stay as memory has them, and a pair is two lanes of one vector.
#pragma once

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr int pairs_at_once = 32;  // their bits, each twice, are a word
constexpr std::uint64_t first_of_pairs = 0x5555555555555555u;

// v with the elements of each pair swapped.
template <class T>
LIPVAE_INLINE typename Simd<T>::V swap_pairs(typename Simd<T>::V v) {
  using V = typename Simd<T>::V;
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_permute_ps((__m512)v, 0xb1);
  else
    return (V)_mm512_permute_pd((__m512d)v, 0x55);
}

// Bits of pairs_at_once pairs as the lanes of vectors that they swap.
template <class T>
class PairSwaps {
  using S = Simd<T>;
  using V = typename S::V;

 public:
  LIPVAE_INLINE explicit PairSwaps(std::uint64_t bits) : doubled_(3 * _pdep_u64(bits, first_of_pairs)) {}
  LIPVAE_INLINE V apply(V v, int place) const {
    const std::uint64_t lanes = doubled_ >> place * S::lanes;
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_permute_ps((__m512)v, __mmask16(lanes), (__m512)v, 0xb1);
    else
      return (V)_mm512_mask_permute_pd((__m512d)v, __mmask8(lanes), (__m512d)v, 0x55);
  }

 private:
  std::uint64_t doubled_;
};

// to = body(from, its place) of the vectors of up to pairs_at_once pairs, and asks for what comes `ahead` bytes
// after them.
template <bool streaming, int ahead, class T, class Body>
LIPVAE_INLINE void for_each_vector_of_pairs(const T* from, T* to, int pairs, Body&& body) {
  using S = Simd<T>;
  constexpr int vectors = 2 * pairs_at_once / S::lanes;
  if (pairs == pairs_at_once) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      if constexpr (ahead > 0) prefetch_ahead<vector_bytes, ahead>(from + v * S::lanes);
      const typename S::V result = body(S::load(from + v * S::lanes), v);
      if constexpr (streaming)
        S::stream(to + v * S::lanes, result);
      else
        S::store(to + v * S::lanes, result);
    }
  } else {
    for (int v = 0; v * S::lanes < 2 * pairs; ++v) {
      const int left = 2 * pairs - v * S::lanes;
      const T* at = from + v * S::lanes;
      const typename S::V result = body(left < S::lanes ? S::load_first(at, left) : S::load(at), v);
      if (left < S::lanes)
        S::store_first(to + v * S::lanes, result, left);
      else
        S::store(to + v * S::lanes, result);
    }
  }
}

// Each pair of v in order, given v with its pairs swapped. The first lane takes the smaller and the second the
// larger; both keep theirs where one is NaN.
template <class T>
LIPVAE_INLINE typename Simd<T>::V sorted_pairs(typename Simd<T>::V v, typename Simd<T>::V swapped) {
  using V = typename Simd<T>::V;
  const V smaller = Simd<T>::min(swapped, v);
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_mask_max_ps((__m512)smaller, __mmask16(~first_of_pairs), (__m512)swapped, (__m512)v);
  else
    return (V)_mm512_mask_max_pd((__m512d)smaller, __mmask8(~first_of_pairs), (__m512d)swapped, (__m512d)v);
}

template <bool streaming, class T, class Write>
LIPVAE_INLINE void sort_pairs(const T* x, T* y, int count, Write&& write) {
  using S = Simd<T>;
  using V = typename S::V;
  auto sort = [&](int i, int pairs) __attribute__((always_inline)) {
    std::uint64_t doubled = 0;
    constexpr int ahead = streaming ? memory_ahead : 1024;
    for_each_vector_of_pairs<streaming, ahead>(x + 2 * i, y + 2 * i, pairs, [&](V v, int place) {
      const V swapped = swap_pairs<T>(v);
      doubled |= std::uint64_t(S::movemask(S::greater(v, swapped))) << place * S::lanes;
      return sorted_pairs<T>(v, swapped);
    });
    return _pext_u64(doubled, first_of_pairs);
  };
  int i = 0;
  for (; i + 2 * pairs_at_once <= count; i += 2 * pairs_at_once) {
    const std::uint64_t low = sort(i, pairs_at_once), high = sort(i + pairs_at_once, pairs_at_once);
    write(low | high << pairs_at_once, 2 * pairs_at_once);
  }
  for (; i < count; i += pairs_at_once) {
    const int pairs = count - i < pairs_at_once ? count - i : pairs_at_once;
    write(sort(i, pairs), pairs);
  }
}

template <bool streaming, class T, class Bits>
LIPVAE_INLINE void unsort_pairs(const T* x, T* y, int count, const Bits& bits) {
  using V = typename Simd<T>::V;
  auto unsort = [&](int i, int pairs) __attribute__((always_inline)) {
    const PairSwaps<T> swaps(bits.word(i));
    constexpr int ahead = streaming ? memory_ahead : 0;
    for_each_vector_of_pairs<streaming, ahead>(x + 2 * i, y + 2 * i, pairs, [&](V v, int place) {
      return swaps.apply(v, place);
    });
  };
  int i = 0;
  for (; i + pairs_at_once <= count; i += pairs_at_once) unsort(i, pairs_at_once);
  if (i < count) unsort(i, count - i);
}

}  // namespace lipvae::LIPVAE_ISA
