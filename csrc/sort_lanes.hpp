// The sort of two vectors, lane by lane.
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

}  // namespace lipvae::LIPVAE_ISA
