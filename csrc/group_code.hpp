// How a pass over groups records the outcomes of its comparators, or reads them.
#pragma once

#include "group_bits.hpp"
#include "networks.hpp"

namespace lipvae::LIPVAE_ISA {

// The bits of one vector of groups, in a buffer for each comparator. Vectors come in order; only the
// last may start inside a byte (aligned == false).
template <class T, bool aligned>
struct VectorBits {
  BitBuffer* buffer;
  int first;  // group
  LIPVAE_INLINE void put(int c, typename Simd<T>::Mask swapped) const {
    constexpr int lanes = Simd<T>::lanes;
    const unsigned mask = Simd<T>::movemask(swapped);
    std::uint8_t* p = buffer[c].bytes + first / 8;
    if constexpr (aligned && lanes >= 8) {
      __builtin_memcpy(p, &mask, lanes / 8);  // little-endian
    } else {
      unsigned bits = 0;
      __builtin_memcpy(&bits, p, 4);
      bits = (bits & ((1u << first % 8) - 1u)) | mask << first % 8;
      __builtin_memcpy(p, &bits, 4);
    }
  }
  LIPVAE_INLINE void swap(int c, typename Simd<T>::V& a, typename Simd<T>::V& b) const {
    typename Simd<T>::Int bits;
    __builtin_memcpy(&bits, buffer[c].bytes + first / 8, sizeof bits);
    Simd<T>::swap_where(bits, aligned && Simd<T>::lanes >= 8 ? 0 : first % 8, a, b);
  }
};
template <class T, bool aligned>
LIPVAE_INLINE VectorBits<T, aligned> vector_bits(BitBuffer* buffer, int first) {
  return {buffer, first};
}

// The same, read where they lie in the code of the one comparator of pairs, which begins at bit `offset`.
struct CodeStretch {
  const std::uint8_t* code;
  int offset;  // below 8

  // At least 56 bits from bit `first` on, a multiple of 8.
  LIPVAE_INLINE std::uint64_t word(int first) const {
    std::uint64_t bits;
    __builtin_memcpy(&bits, code + first / 8, 8);
    return bits >> offset;
  }
};
template <class T, bool aligned>
struct StretchBits {
  const std::uint8_t* code;
  int first;  // bit
  LIPVAE_INLINE void swap(int, typename Simd<T>::V& a, typename Simd<T>::V& b) const {
    typename Simd<T>::Int bits;
    __builtin_memcpy(&bits, code, sizeof bits);
    Simd<T>::swap_where(bits, first, a, b);
  }
};
template <class T, bool aligned>
LIPVAE_INLINE StretchBits<T, aligned> vector_bits(const CodeStretch* stretch, int first) {
  // A row's vectors of 8 lanes all begin at the same bit of a byte.
  if constexpr (aligned && Simd<T>::lanes >= 8) return {stretch->code + first / 8, stretch->offset};
  const int bit = stretch->offset + first;
  return {stretch->code + bit / 8, bit % 8};
}

// The mask of the one comparator of pairs, as it is.
template <class T>
struct PairMask {
  typename Simd<T>::Mask* mask;
  LIPVAE_INLINE void put(int, typename Simd<T>::Mask swapped) const { *mask = swapped; }
};

// The bits of one row of groups. with(position, count, body) applies body to those of `count` groups at
// the bit `position` of each comparator's code. A code that streams is beyond the caches.
template <class Pass, int g, bool = Pass::writes_code && g == 2>
class RowBits {
 public:
  LIPVAE_INLINE RowBits(std::uint8_t* code, std::int64_t bytes, std::int64_t stride, bool streaming)
      : code_(code), bytes_(bytes), stride_(stride), streaming_(streaming) {}
  template <class Body>
  LIPVAE_INLINE void with(std::int64_t position, int count, Body&& body) {
    // Bytes just stored would be read back across the words that they were stored in, which waits for
    // every store before them. Vectors read a few bytes too many.
    if constexpr (g == 2 && Pass::reads_code) {
      if ((position + count) / 8 + 16 <= bytes_) {
        const CodeStretch stretch{code_ + position / 8, int(position % 8)};
        body(&stretch);
        return;
      }
    }
    constexpr int comparators = Network<g>::size;
    BitBuffer buffer[comparators];
    if constexpr (Pass::reads_code) {
      // Too many streams for the processor to see what comes next.
      if (streaming_)
        for (int c = 0; c < comparators; ++c)
          __builtin_prefetch(code_ + c * stride_ + position / 8 + BitBuffer::capacity / 8);
      for (int c = 0; c < comparators; ++c)
        extract_bits(code_ + c * stride_, bytes_, position, count, buffer[c]);
    }
    body(buffer);
    if constexpr (Pass::writes_code)
      for (int c = 0; c < comparators; ++c)
        append_bits(code_ + c * stride_, position, count, buffer[c], streaming_);
  }
  LIPVAE_INLINE void finish() {}

 private:
  std::uint8_t* code_;
  std::int64_t bytes_, stride_;
  bool streaming_;
};
// Pairs have one comparator, whose code is written in words, one after the other: through a buffer each
// would be stored, and read again before it has left the core.
template <class Pass, int g>
class RowBits<Pass, g, true> {
 public:
  LIPVAE_INLINE RowBits(std::uint8_t* code, std::int64_t, std::int64_t, bool) : writer_(code) {}
  template <class Body>
  LIPVAE_INLINE void with(std::int64_t, int, Body&& body) {
    body(&writer_);
  }
  LIPVAE_INLINE void finish() { writer_.finish(); }

 private:
  BitWriter writer_;
};

}  // namespace lipvae::LIPVAE_ISA
