// Reductions over the lanes of one vector, by shuffles.
#pragma once

#include <utility>

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

// Lane i of the result is lane i ^ by of v. Inside 16-byte blocks this takes one cycle; a rotation of
// the whole vector takes eight.
template <int by, class Vector, std::size_t... lane>
LIPVAE_INLINE Vector swap_lanes(Vector v, std::index_sequence<lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, int(lane ^ by)...);
#else
  typedef decltype(v < v) Index;
  return __builtin_shuffle(v, Index{(lane ^ by)...});
#endif
}

// Folds the upper half of the lanes onto the lower, and so on down to one lane: the order depends on
// nothing but their number.
template <class Vector, class Fold>
LIPVAE_INLINE auto fold_lanes(Vector v, Fold&& fold) {
  constexpr int lanes = int(sizeof v / sizeof v[0]);
  constexpr auto all = std::make_index_sequence<lanes>();
  if constexpr (lanes >= 16) v = fold(v, swap_lanes<8>(v, all));
  if constexpr (lanes >= 8) v = fold(v, swap_lanes<4>(v, all));
  if constexpr (lanes >= 4) v = fold(v, swap_lanes<2>(v, all));
  v = fold(v, swap_lanes<1>(v, all));
  return v[0];
}

template <class T>
LIPVAE_INLINE T add_lanes(typename Simd<T>::V v) {
  return fold_lanes(v, [](auto a, auto b) { return a + b; });
}
template <class T>
LIPVAE_INLINE T multiply_lanes(typename Simd<T>::V v) {
  return fold_lanes(v, [](auto a, auto b) { return a * b; });
}
template <class T>
LIPVAE_INLINE std::int64_t count_lanes(typename Simd<T>::I v) {
  return fold_lanes(v, [](auto a, auto b) { return a + b; });
}
template <class T>
LIPVAE_INLINE T max_lanes(typename Simd<T>::V v) {
  return fold_lanes(v, [](auto a, auto b) { return Simd<T>::max(a, b); });
}

}  // namespace lipvae::LIPVAE_ISA
