// Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011), one counter in each 64-bit lane.
//
// A word lives in the low half of its lane and the high half is arbitrary: the 32-bit multiplier
// ignores it, so that a round of a vector of counters is two multiplications, two shifts and four
// exclusive ors. lipvae.noise.philox4x32 is the same generator.
#pragma once

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

typedef std::uint64_t Counters __attribute__((vector_size(vector_bytes)));
constexpr int counter_lanes = vector_bytes / 8;

LIPVAE_INLINE Counters splat_counter(std::uint64_t x) { return x + Counters{}; }

LIPVAE_INLINE Counters multiply_low_halves(Counters a, Counters b) {
#if defined(__AVX512F__)
  return (Counters)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Counters)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (Counters)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

constexpr int philox_rounds = 10;

struct PhiloxKey {
  Counters word[philox_rounds][2];

  explicit LIPVAE_INLINE PhiloxKey(std::uint64_t seed) {
    std::uint32_t low = std::uint32_t(seed), high = std::uint32_t(seed >> 32);
    for (int i = 0; i < philox_rounds; ++i) {
      word[i][0] = splat_counter(low);
      word[i][1] = splat_counter(high);
      low += 0x9E3779B9u;
      high += 0xBB67AE85u;
    }
  }
};

struct PhiloxWords {
  Counters word[4];
};

// The four words of the counters (block, stream, index, index >> 32).
LIPVAE_INLINE PhiloxWords philox(const PhiloxKey& key, Counters block, Counters stream, Counters index) {
  const Counters first = splat_counter(0xD2511F53u), second = splat_counter(0xCD9E8D57u);
  Counters c0 = block, c1 = stream, c2 = index, c3 = index >> 32;
  for (int i = 0; i < philox_rounds; ++i) {
    const Counters p = multiply_low_halves(first, c0), q = multiply_low_halves(second, c2);
    c0 = (q >> 32) ^ c1 ^ key.word[i][0];
    c1 = q;
    c2 = (p >> 32) ^ c3 ^ key.word[i][1];
    c3 = p;
  }
  return {{c0, c1, c2, c3}};
}

// (b + 1/2) / 2^52 with b the top 52 of the 64 bits (high, low): in (0, 1), exact in a double.
LIPVAE_INLINE Simd<double>::V uniform52(Counters low, Counters high) {
  const Counters bits = ((high << 32) >> 12) | ((low & 0xffffffffu) >> 12) | 0x3FF0000000000000u;
  return ((Simd<double>::V)bits - 1.0) + 0x1p-53;
}

// (word + 1/2) / 2^32.
LIPVAE_INLINE Simd<double>::V uniform32(Counters word) {
  const Counters bits = ((word & 0xffffffffu) << 20) | 0x3FF0000000000000u;
  return ((Simd<double>::V)bits - 1.0) + 0x1p-33;
}

}  // namespace lipvae::LIPVAE_ISA
