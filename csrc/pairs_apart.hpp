// GroupSort of pairs with AVX2: the pairs of two vectors are taken apart, into a vector of first elements and one of
// second ones, and put together again. All shuffles keep to the 16-byte halves of vectors.
#pragma once

#include "groups.hpp"
#include "sort_lanes.hpp"

namespace lipvae::LIPVAE_ISA {

// The place among the pairs of two vectors of the pair in each lane: halves hold those of their own.
template <class T>
constexpr int pair_of_lane(int lane) {
  constexpr int half = Simd<T>::block_lanes / 2;
  return lane / half % 2 * 2 * half + lane / (2 * half) * half + lane % half;
}

// Calls body(first, second) with the pairs of two vectors taken apart, and stores what it makes of them.
template <bool streaming, class T, class Body>
LIPVAE_INLINE void apply_apart(const T* x, T* y, Body&& body) {
  using S = Simd<T>;
  using V = typename S::V;
  if constexpr (streaming) prefetch_ahead<2 * vector_bytes>(x);
  const V a = S::load(x), b = S::load(x + S::lanes);
  V first = shuffle_blocks<T, Even>(a, b), second = shuffle_blocks<T, Odd>(a, b);
  body(first, second);
  const V low = interleave_low<T>(first, second), high = interleave_high<T>(first, second);
  if constexpr (streaming) {
    S::stream(y, low);
    S::stream(y + S::lanes, high);
  } else {
    S::store(y, low);
    S::store(y + S::lanes, high);
  }
}
// The same for fewer pairs than that; padding is two zeros.
template <class T, class Body>
LIPVAE_INLINE void apply_apart_first(const T* x, T* y, int pairs, Body&& body) {
  T padded[2 * Simd<T>::lanes] = {};
  const std::size_t bytes = 2 * sizeof(T) * std::size_t(pairs);
  __builtin_memcpy(padded, x, bytes);
  apply_apart<false>(padded, padded, body);
  __builtin_memcpy(y, padded, bytes);
}

// Bits of lanes in the order of their pairs.
template <class T>
LIPVAE_INLINE std::uint64_t bits_in_order(std::uint64_t bits) {
  if constexpr (sizeof(T) == 4)
    return (bits & 0xc3c3c3c3c3c3c3c3u) | (bits & 0x0c0c0c0c0c0c0c0cu) << 2 | (bits & 0x3030303030303030u) >> 2;
  else
    return (bits & 0x9999999999999999u) | (bits & 0x2222222222222222u) << 1 | (bits & 0x4444444444444444u) >> 1;
}

template <bool streaming, class T, class Write>
LIPVAE_INLINE void sort_pairs(const T* x, T* y, int count, Write&& write) {
  using S = Simd<T>;
  using Mask = typename S::Mask;
  for (int i = 0; i < count; i += word_bits) {
    const int end = count - i < word_bits ? count : i + word_bits, whole = end - end % S::lanes;
    std::uint64_t word = sort_word<T>(i, end, [&](std::int64_t pair, Mask& swapped) __attribute__((always_inline)) {
      apply_apart<streaming>(x + 2 * pair, y + 2 * pair, SortLanes<T>{swapped});
    });
    if (whole < end) {
      Mask swapped;
      apply_apart_first(x + 2 * whole, y + 2 * whole, end - whole, SortLanes<T>{swapped});
      word |= std::uint64_t(S::movemask(swapped)) << (whole - i);
    }
    write(bits_in_order<T>(word), end - i);
  }
}

template <bool streaming, class T, class Bits>
LIPVAE_INLINE void unsort_pairs(const T* x, T* y, int count, const Bits& bits) {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  // The blend reads sign bits only, so each lane shifts its pair's bit there.
  I shift{};
  for (int lane = 0; lane < S::lanes; ++lane) shift[lane] = 8 * int(sizeof(T)) - 1 - pair_of_lane<T>(lane);
  auto unsort = [shift](std::uint64_t word) {
    const I mask = S::splat_int(typename S::Int(word)) << shift;
    return [mask](V& first, V& second) __attribute__((always_inline)) {
      const V a = first;
      first = S::choose(mask, second, a);
      second = S::choose(mask, a, second);
    };
  };
  constexpr int pairs_of_word = 32;  // those that a word surely has, in whole vectors
  int i = 0;
  for (; i + pairs_of_word <= count; i += pairs_of_word) {
    const std::uint64_t word = bits.word(i);
#pragma GCC unroll 8
    for (int v = 0; v < pairs_of_word; v += S::lanes)
      apply_apart<streaming>(x + 2 * (i + v), y + 2 * (i + v), unsort(word >> v));
  }
  if (i == count) return;
  const std::uint64_t word = bits.word(i);
  int pair = i;
  for (; pair + S::lanes <= count; pair += S::lanes)
    apply_apart<false>(x + 2 * pair, y + 2 * pair, unsort(word >> (pair - i)));
  if (pair < count) apply_apart_first(x + 2 * pair, y + 2 * pair, count - pair, unsort(word >> (pair - i)));
}

}  // namespace lipvae::LIPVAE_ISA
