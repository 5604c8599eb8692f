// GroupSort of pairs of planes, all those of one row of the code at a time.
#pragma once

#include "group_bits.hpp"
#include "sort_lanes.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr int code_ahead = 512;  // bytes, where it is read

// Two planes of `inner` elements, at least a vector, which follow one another in x and in y; y may be x.
// body(low, high) changes a vector of each. `far` if y, too, has to come from memory.
template <bool far, class T>
class PlanePair {
  using S = Simd<T>;
  using V = typename S::V;

 public:
  // A last partial vector becomes a whole one that overlaps its neighbour; it is loaded first, so y may be x.
  LIPVAE_INLINE PlanePair(const T* x, T* y, std::int64_t inner)
      : x_(x),
        y_(y),
        inner_(inner),
        last_low_(S::load(x + inner - S::lanes)),
        last_high_(S::load(x + 2 * inner - S::lanes)) {}

  template <class Body>
  LIPVAE_INLINE void apply(std::int64_t i, Body&& body) const {
    prefetch_ahead<vector_bytes>(x_ + i);
    prefetch_ahead<vector_bytes>(x_ + inner_ + i);
    if constexpr (far) {
      prefetch_ahead<vector_bytes>(y_ + i);
      prefetch_ahead<vector_bytes>(y_ + inner_ + i);
    }
    V low = S::load(x_ + i), high = S::load(x_ + inner_ + i);
#if defined(__SSE2__)
    // GCC would load them again for each use, and many lie across two lines.
    asm("" : "+v"(low), "+v"(high));
#endif
    body(low, high);
    store(i, low, high);
  }
  template <class Body>
  LIPVAE_INLINE void apply_last(Body&& body) const {
    V low = last_low_, high = last_high_;
    body(low, high);
    store(inner_ - S::lanes, low, high);
  }

 private:
  LIPVAE_INLINE void store(std::int64_t i, V low, V high) const {
    S::store(y_ + i, low);
    S::store(y_ + inner_ + i, high);
  }

  const T* x_;
  T* y_;
  std::int64_t inner_;
  V last_low_, last_high_;
};

// Sorts `pairs` pairs of planes that follow one another. The code begins at a whole byte.
template <bool far, class T>
void sort_planes(const T* x, T* y, std::int64_t pairs, std::int64_t inner, std::uint8_t* code) {
  using S = Simd<T>;
  using Mask = typename S::Mask;
  const std::int64_t last = inner - S::lanes;
  BitWriter writer(code);
  for (; pairs > 0; --pairs, x += 2 * inner, y += 2 * inner) {
    const PlanePair<far, T> planes(x, y, inner);
    auto sort = [&](std::int64_t i, Mask& swapped) __attribute__((always_inline)) {
      planes.apply(i, SortLanes<T>{swapped});
    };
    std::int64_t i = 0;
    for (; i + word_bits <= inner; i += word_bits) writer.put(sort_word<T>(i, i + word_bits, sort), word_bits);
    if (i == inner) continue;
    std::uint64_t word = sort_word<T>(i, inner, sort);
    if (inner % S::lanes != 0) {
      Mask swapped;
      planes.apply_last(SortLanes<T>{swapped});
      const std::uint64_t bits = S::movemask(swapped);
      word |= last >= i ? bits << (last - i) : bits >> (i - last);
    }
    writer.put(word, int(inner - i));
  }
  writer.finish();
}

// Undoes it; no byte of the code is read at `end` or beyond.
template <bool far, class T>
void unsort_planes(const T* x, T* y, std::int64_t pairs, std::int64_t inner, const std::uint8_t* code,
                   const std::uint8_t* end) {
  using S = Simd<T>;
  using V = typename S::V;
  auto unsort = [](std::uint64_t bits) {
    return [bits](V& low, V& high) __attribute__((always_inline)) {
      S::swap_where(typename S::Int(bits), 0, low, high);
    };
  };
  const std::int64_t last = inner - S::lanes;
  std::int64_t position = 0;
  auto bits_from = [&](std::int64_t i) {
    return load_bits(code + (position + i) / 8, int((position + i) % 8), end);
  };
  for (; pairs > 0; --pairs, x += 2 * inner, y += 2 * inner, position += inner) {
    const PlanePair<far, T> planes(x, y, inner);
    prefetch_at<1>(code + position / 8, code_ahead);
    std::int64_t i = 0;
    for (; i + word_bits <= inner; i += word_bits) {
      const std::uint64_t word = bits_from(i);
#pragma GCC unroll 8
      for (int v = 0; v < word_bits; v += S::lanes) planes.apply(i + v, unsort(word >> v));
    }
    if (i == inner) continue;
    const std::uint64_t word = bits_from(i);
    std::int64_t j = i;
    for (; j <= last; j += S::lanes) planes.apply(j, unsort(word >> (j - i)));
    if (j < inner) planes.apply_last(unsort(bits_from(last)));
  }
}

}  // namespace lipvae::LIPVAE_ISA
