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

// Writes count bits of the buffer at bit `position` of code; bits before it are kept, and the rest
// of the last byte becomes 0.
LIPVAE_INLINE void append_bits(std::uint8_t* code, std::int64_t position, int count, const BitBuffer& bits) {
  std::uint8_t* p = code + position / 8;
  const int offset = int(position % 8);
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

// Reads count bits at bit `position` of code into the buffer.
LIPVAE_INLINE void extract_bits(const std::uint8_t* code, std::int64_t position, int count, BitBuffer& bits) {
  const std::uint8_t* p = code + position / 8;
  const int offset = int(position % 8);
  for (int i = 0; i < count; i += 64) {
    const int used = count - i < 64 ? count - i : 64;
    std::uint64_t word = load_bytes(p + i / 8, (offset + used + 7) / 8) >> offset;
    if (offset + used > 64) word |= std::uint64_t(p[i / 8 + 8]) << (64 - offset);
    __builtin_memcpy(bits.bytes + i / 8, &word, 8);
  }
}

}  // namespace lipvae::LIPVAE_ISA
