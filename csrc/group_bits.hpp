// Bits of GroupSort's code. Kernels work on a short stretch of each comparator's bits that starts at
// a byte; this moves stretches to and from the code, where they start at any bit. Going through a
// short buffer also keeps the comparators' streams, often a power of two apart, from evicting each
// other.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

struct BitBuffer {
  static constexpr int capacity = 512;     // bits: one cache line
  std::uint8_t bytes[capacity / 8 + 8];    // vectors write and words read past the last bit

  // 64 bits from bit `first` on, a multiple of 8.
  LIPVAE_INLINE std::uint64_t word(int first) const {
    std::uint64_t bits;
    __builtin_memcpy(&bits, bytes + first / 8, 8);
    return bits;
  }
};

// Up to 8 bytes, little-endian.
LIPVAE_INLINE std::uint64_t load_bytes(const std::uint8_t* p, int count) {
  std::uint64_t word = 0;
  if (count >= 8) {
    __builtin_memcpy(&word, p, 8);
    return word;
  }
  int done = 0;
  if (count & 4) {
    std::uint32_t part;
    __builtin_memcpy(&part, p, 4);
    word = part;
    done = 4;
  }
  if (count & 2) {
    std::uint16_t part;
    __builtin_memcpy(&part, p + done, 2);
    word |= std::uint64_t(part) << (8 * done);
    done += 2;
  }
  if (count & 1) word |= std::uint64_t(p[done]) << (8 * done);
  return word;
}
LIPVAE_INLINE void store_bytes(std::uint8_t* p, std::uint64_t word, int count) {
  if (count >= 8) {
    __builtin_memcpy(p, &word, 8);
    return;
  }
  if (count & 4) {
    __builtin_memcpy(p, &word, 4);
    p += 4;
    word >>= 32;
  }
  if (count & 2) {
    __builtin_memcpy(p, &word, 2);
    p += 2;
    word >>= 16;
  }
  if (count & 1) *p = std::uint8_t(word);
}

// Writes a cache line.
LIPVAE_INLINE void store_line(std::uint8_t* p, const std::uint8_t* from, bool streaming) {
  using S = Simd<float>;
  constexpr int line = BitBuffer::capacity / 8;
  if (streaming && reinterpret_cast<std::uintptr_t>(p) % line == 0)
    for (int i = 0; i < line; i += vector_bytes)
      S::stream(reinterpret_cast<float*>(p + i), S::load(reinterpret_cast<const float*>(from + i)));
  else
    __builtin_memcpy(p, from, line);
}

// Writes count bits of the buffer at bit `position` of code; bits before it are kept, and the rest
// of the last byte becomes 0.
LIPVAE_INLINE void append_bits(std::uint8_t* code, std::int64_t position, int count, const BitBuffer& bits,
                               bool streaming) {
  std::uint8_t* p = code + position / 8;
  const int offset = int(position % 8);
  if (offset == 0 && count == BitBuffer::capacity) return store_line(p, bits.bytes, streaming);
  std::uint64_t carry = offset ? p[0] & ((1u << offset) - 1u) : 0u;
  for (int i = 0; i < count; i += 64) {
    std::uint64_t word;
    __builtin_memcpy(&word, bits.bytes + i / 8, 8);
    const int used = count - i < 64 ? count - i : 64;
    if (used < 64) word &= (std::uint64_t(1) << used) - 1u;
    store_bytes(p + i / 8, carry | word << offset, (offset + used + 7) / 8);
    carry = offset ? word >> (64 - offset) : 0u;
    if (offset + used > 64) p[i / 8 + 8] = std::uint8_t(carry);
  }
}

// Writes stretches of bits one after the other, from a whole byte on.
class BitWriter {
 public:
  LIPVAE_INLINE explicit BitWriter(std::uint8_t* code) : p_(code) {}
  // Up to 64 bits; those of `bits` beyond count are 0.
  LIPVAE_INLINE void put(std::uint64_t bits, int count) {
    if (filled_ == 0 && count == 64) {
      __builtin_memcpy(p_, &bits, 8);
      p_ += 8;
      return;
    }
    word_ |= bits << filled_;
    if (filled_ + count >= 64) {
      __builtin_memcpy(p_, &word_, 8);
      p_ += 8;
      word_ = filled_ ? bits >> (64 - filled_) : 0u;
    }
    filled_ = (filled_ + count) & 63;
  }
  // Writes the bits that are left; the rest of the last byte becomes 0.
  LIPVAE_INLINE void finish() { store_bytes(p_, word_, (filled_ + 7) / 8); }

 private:
  std::uint8_t* p_;
  std::uint64_t word_ = 0;
  int filled_ = 0;
};

// 64 bits from bit `offset` < 8 of the byte at p on; those of bytes at `end` and beyond are 0.
LIPVAE_INLINE std::uint64_t load_bits(const std::uint8_t* p, int offset, const std::uint8_t* end) {
  if (p + 9 > end) return load_bytes(p, int(end - p)) >> offset;
  std::uint64_t word;
  __builtin_memcpy(&word, p, 8);
  return word >> offset | std::uint64_t(p[8]) << 1 << (63 - offset);
}

// Reads count bits at bit `position` of code into the buffer. `bytes` are those of the whole code.
LIPVAE_INLINE void extract_bits(const std::uint8_t* code, std::int64_t bytes, std::int64_t position,
                                int count, BitBuffer& bits) {
  const std::uint8_t* p = code + position / 8;
  const int offset = int(position % 8);
  if (offset == 0 && count == BitBuffer::capacity) {
    __builtin_memcpy(bits.bytes, p, BitBuffer::capacity / 8);
    return;
  }
  for (int i = 0; i < count; i += 64, p += 8) {
    const std::uint64_t word = load_bits(p, offset, code + bytes);
    __builtin_memcpy(bits.bytes + i / 8, &word, 8);
  }
}

}  // namespace lipvae::LIPVAE_ISA
