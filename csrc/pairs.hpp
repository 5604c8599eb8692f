// GroupSort of pairs side by side, where masks are registers: vectors stay as memory has them, and a pair is
// two lanes of one vector.
#pragma once

#include "group_code.hpp"

#if defined(__AVX512F__)
namespace lipvae::LIPVAE_ISA {

constexpr int pairs_at_once = 32;  // their bits, each twice, are a word
constexpr std::uint64_t first_of_pairs = 0x5555555555555555u;

// v with the two elements of each pair swapped, in the lanes of the mask.
template <class T>
LIPVAE_INLINE typename Simd<T>::V swap_pairs(std::uint64_t mask, typename Simd<T>::V v) {
  using V = typename Simd<T>::V;
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_mask_permute_ps((__m512)v, __mmask16(mask), (__m512)v, 0xb1);
  else
    return (V)_mm512_mask_permute_pd((__m512d)v, __mmask8(mask), (__m512d)v, 0x55);
}

// The larger of a and b in the second lane of each pair, v in the first; b where either is NaN.
template <class T>
LIPVAE_INLINE typename Simd<T>::V max_of_second(typename Simd<T>::V v, typename Simd<T>::V a,
                                                typename Simd<T>::V b) {
  using V = typename Simd<T>::V;
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_mask_max_ps((__m512)v, __mmask16(~first_of_pairs), (__m512)a, (__m512)b);
  else
    return (V)_mm512_mask_max_pd((__m512d)v, __mmask8(~first_of_pairs), (__m512d)a, (__m512d)b);
}

// to = body(from, its place) of the vectors of up to pairs_at_once pairs, and asks for what comes `ahead` bytes
// after them.
template <bool streaming, int ahead, class T, class Body>
LIPVAE_INLINE void for_each_vector_of_pairs(const T* from, T* to, int pairs, Body&& body) {
  using S = Simd<T>;
  constexpr int vectors = 2 * pairs_at_once / S::lanes;
  if (pairs == pairs_at_once) {
#pragma GCC unroll 8
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

// Sorts `count` pairs; y may be x. write(bits, pairs) receives the bits of so many.
template <bool streaming, class T, class Write>
LIPVAE_INLINE void sort_pairs(const T* x, T* y, int count, Write&& write) {
  using S = Simd<T>;
  using V = typename S::V;
  auto sort = [&](int i, int pairs) __attribute__((always_inline)) {
    std::uint64_t doubled = 0;
    for_each_vector_of_pairs<streaming, streaming ? 4096 : 1024>(x + 2 * i, y + 2 * i, pairs, [&](V v, int place) {
      const V other = swap_pairs<T>(~std::uint64_t(0), v);
      doubled |= std::uint64_t(S::movemask(S::greater(v, other))) << place * S::lanes;
      return max_of_second<T>(S::min(other, v), other, v);
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

// And back: bits.word(i) begins with the bit of pair i.
template <bool streaming, class T, class Bits>
LIPVAE_INLINE void unsort_pairs(const T* x, T* y, int count, const Bits& bits) {
  using V = typename Simd<T>::V;
  auto unsort = [&](int i, int pairs) __attribute__((always_inline)) {
    const std::uint64_t doubled = 3 * _pdep_u64(bits.word(i), first_of_pairs);
    for_each_vector_of_pairs<streaming, streaming ? 4096 : 0>(x + 2 * i, y + 2 * i, pairs, [&](V v, int place) {
      return swap_pairs<T>(doubled >> place * Simd<T>::lanes, v);
    });
  };
  int i = 0;
  for (; i + pairs_at_once <= count; i += pairs_at_once) unsort(i, pairs_at_once);
  if (i < count) unsort(i, count - i);
}

}  // namespace lipvae::LIPVAE_ISA
#endif
