// One vector type per scalar type, as wide as the registers of the instruction set being compiled,
// and the few operations that GCC's vector extensions do not spell. Wider vectors than the registers
// compile too, but run many times slower.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LIPVAE_INLINE inline __attribute__((always_inline))

namespace lipvae::LIPVAE_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
struct Scalar;
template <>
struct Scalar<float> {
  using Int = std::int32_t;
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct Scalar<double> {
  using Int = std::int64_t;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

template <class T>
struct Simd {
  using Int = typename Scalar<T>::Int;
  static constexpr int lanes = vector_bytes / int(sizeof(T));
  static constexpr int block_lanes = 16 / int(sizeof(T));  // lanes of a 16-byte block
  static constexpr int blocks = vector_bytes / 16;
  typedef T V __attribute__((vector_size(vector_bytes)));
  typedef Int I __attribute__((vector_size(vector_bytes)));  // integers and masks (0 or -1)

  static LIPVAE_INLINE V splat(T x) { return x - V{}; }
  static LIPVAE_INLINE I splat_int(Int x) { return x - I{}; }

  static LIPVAE_INLINE V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static LIPVAE_INLINE void store(T* p, V v) { __builtin_memcpy(p, &v, sizeof v); }

  static LIPVAE_INLINE I iota() {
    I v{};
    for (int i = 0; i < lanes; ++i) v[i] = i;
    return v;
  }
  // All ones in the first count lanes.
  static LIPVAE_INLINE I first(std::int64_t count) { return iota() < splat_int(Int(count)); }

  // The first count < lanes elements at p, zeros after them; touches nothing beyond.
  static LIPVAE_INLINE V load_first(const T* p, std::int64_t count) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_loadu_ps(__mmask16(mask), p);
    else
      return (V)_mm512_maskz_loadu_pd(__mmask8(mask), p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_maskload_ps(reinterpret_cast<const float*>(p), (__m256i)first(count));
    else
      return (V)_mm256_maskload_pd(reinterpret_cast<const double*>(p), (__m256i)first(count));
#else
    V v{};
    for (int i = 0; i < count; ++i) v[i] = p[i];
    return v;
#endif
  }
  static LIPVAE_INLINE void store_first(T* p, V v, std::int64_t count) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
    else
      _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      _mm256_maskstore_ps(reinterpret_cast<float*>(p), (__m256i)first(count), (__m256)v);
    else
      _mm256_maskstore_pd(reinterpret_cast<double*>(p), (__m256i)first(count), (__m256d)v);
#else
    for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
  }

  // Elements before the first aligned address at or after p, at most n.
  static LIPVAE_INLINE std::int64_t until_aligned(const T* p, std::int64_t n) {
    const auto past = std::int64_t(reinterpret_cast<std::uintptr_t>(p) % vector_bytes);
    const std::int64_t count = past ? (vector_bytes - past) / std::int64_t(sizeof(T)) : 0;
    return count < n ? count : n;
  }
  // A store to an aligned address that leaves no copy in the caches.
  static LIPVAE_INLINE void stream(T* p, V v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
    store(p, v);
#endif
  }

  static constexpr Int sign_bit = Int(Int(1) << (8 * sizeof(Int) - 2)) * -2;
  static LIPVAE_INLINE V abs(V v) { return (V)((I)v & ~splat_int(sign_bit)); }
  static LIPVAE_INLINE I sign(V v) { return (I)v & splat_int(sign_bit); }
  static LIPVAE_INLINE V keep(I mask, V v) { return (V)(mask & (I)v); }
  // a < b ? a : b and a > b ? a : b in each lane: b where either is NaN.
  static LIPVAE_INLINE V min(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_min_ps((__m512)a, (__m512)b);
    else
      return (V)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_min_ps((__m256)a, (__m256)b);
    else
      return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm_min_ps((__m128)a, (__m128)b);
    else
      return (V)_mm_min_pd((__m128d)a, (__m128d)b);
#else
    return a < b ? a : b;
#endif
  }
  static LIPVAE_INLINE V max(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_max_ps((__m512)a, (__m512)b);
    else
      return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_max_ps((__m256)a, (__m256)b);
    else
      return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm_max_ps((__m128)a, (__m128)b);
    else
      return (V)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return a > b ? a : b;
#endif
  }

  // The lanes of a comparison: a mask register, or a vector of all or no bits in each lane.
#if defined(__AVX512F__)
  using Mask = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
  template <int predicate>
  static LIPVAE_INLINE Mask compare(V a, V b) {
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, predicate);
    else
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, predicate);
  }
  static LIPVAE_INLINE Mask greater(V a, V b) { return compare<_CMP_GT_OQ>(a, b); }
  static LIPVAE_INLINE Mask not_at_most(V a, V b) { return compare<_CMP_NLE_UQ>(a, b); }
  static LIPVAE_INLINE V keep(Mask m, V v) {
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_mov_ps(m, (__m512)v);
    else
      return (V)_mm512_maskz_mov_pd(m, (__m512d)v);
  }
  // sum + v, and count + 1, in those lanes.
  static LIPVAE_INLINE V add_where(Mask m, V sum, V v) {
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_add_ps((__m512)sum, m, (__m512)sum, (__m512)v);
    else
      return (V)_mm512_mask_add_pd((__m512d)sum, m, (__m512d)sum, (__m512d)v);
  }
  static LIPVAE_INLINE I count_where(Mask m, I count) {
    const __m512i all = _mm512_set1_epi32(-1), n = (__m512i)count;
    if constexpr (sizeof(T) == 4)
      return (I)_mm512_mask_sub_epi32(n, m, n, all);
    else
      return (I)_mm512_mask_sub_epi64(n, m, n, all);
  }
  static LIPVAE_INLINE unsigned movemask(Mask m) { return m; }
#else
  using Mask = I;
  static LIPVAE_INLINE Mask greater(V a, V b) { return a > b; }
  // True for a NaN.
  static LIPVAE_INLINE Mask not_at_most(V a, V b) {
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (I)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ);
    else
      return (I)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_NLE_UQ);
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return (I)_mm_cmpnle_ps((__m128)a, (__m128)b);
    else
      return (I)_mm_cmpnle_pd((__m128d)a, (__m128d)b);
#else
    return ~(a <= b);
#endif
  }
  static LIPVAE_INLINE V add_where(Mask m, V sum, V v) { return sum + keep(m, v); }
  static LIPVAE_INLINE I count_where(Mask m, I count) { return count - m; }
#endif

  // Lane i of the result is entry index[i] % lookup_entries of the table; a table that is shorter than the
  // vector is repeated.
#if defined(__AVX512F__)
  static constexpr int lookup_entries = sizeof(T) == 4 ? 16 : 0;
  static LIPVAE_INLINE I lookup(I table, I index) {
    return (I)_mm512_permutexvar_epi32((__m512i)index, (__m512i)table);
  }
#elif defined(__AVX2__)
  static constexpr int lookup_entries = sizeof(T) == 4 ? 4 : 0;
  static LIPVAE_INLINE I lookup(I table, I index) {
    return (I)_mm256_permutevar_ps((__m256)table, (__m256i)index);
  }
#else
  static constexpr int lookup_entries = 0;
  static I lookup(I table, I index);
#endif

  // Bit i of the result is the sign bit of lane i.
  static LIPVAE_INLINE unsigned movemask(I m) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return _mm512_movepi32_mask((__m512i)m);
    else
      return _mm512_movepi64_mask((__m512i)m);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return unsigned(_mm256_movemask_ps((__m256)m));
    else
      return unsigned(_mm256_movemask_pd((__m256d)m));
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return unsigned(_mm_movemask_ps((__m128)m));
    else
      return unsigned(_mm_movemask_pd((__m128d)m));
#elif defined(__aarch64__)
    if constexpr (sizeof(T) == 4)
      return vaddvq_u32((uint32x4_t)(m & (splat_int(1) << iota())));
    else
      return unsigned(vaddvq_u64((uint64x2_t)(m & (splat_int(1) << iota()))));
#else
    unsigned bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= unsigned(m[i] & 1) << i;
    return bits;
#endif
  }
  // movemask of four masks, one after the other.
  static LIPVAE_INLINE std::uint64_t movemask4(const Mask* m) {
#if defined(__AVX512BW__)
    if constexpr (sizeof(T) == 4)
      return _mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0]));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
      const __m256i low = _mm256_packs_epi32((__m256i)m[0], (__m256i)m[1]);
      const __m256i high = _mm256_packs_epi32((__m256i)m[2], (__m256i)m[3]);
      // Packing keeps to 16-byte halves: four lanes of each vector, then the other four.
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
      return unsigned(_mm256_movemask_epi8(bytes));
    }
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
      const __m128i low = _mm_packs_epi32((__m128i)m[0], (__m128i)m[1]);
      const __m128i high = _mm_packs_epi32((__m128i)m[2], (__m128i)m[3]);
      return unsigned(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
    }
#endif
    std::uint64_t bits = 0;
    for (int v = 0; v < 4; ++v) bits |= std::uint64_t(movemask(m[v])) << (v * lanes);
    return bits;
  }
#if defined(__AVX2__) && !defined(__AVX512F__)
  // a where the sign bit of the mask is set, elsewhere b.
  static LIPVAE_INLINE V choose(I mask, V a, V b) {
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
    else
      return (V)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
  }
#endif
  // Swaps lane i of a and b where bit first + i is set, which lies in `bits`.
  static LIPVAE_INLINE void swap_where(Int bits, int first, V& a, V& b) {
    const V low = a;
#if defined(__AVX512F__)
    bits >>= first;
    if constexpr (sizeof(T) == 4) {
      a = (V)_mm512_mask_blend_ps(__mmask16(bits), (__m512)low, (__m512)b);
      b = (V)_mm512_mask_blend_ps(__mmask16(bits), (__m512)b, (__m512)low);
    } else {
      a = (V)_mm512_mask_blend_pd(__mmask8(bits), (__m512d)low, (__m512d)b);
      b = (V)_mm512_mask_blend_pd(__mmask8(bits), (__m512d)b, (__m512d)low);
    }
#elif defined(__AVX2__)
    // The blend reads sign bits only, so each lane shifts its own bit there.
    const I mask = splat_int(bits) << (splat_int(Int(8 * sizeof(T) - 1) - first) - iota());
    a = choose(mask, b, low);
    b = choose(mask, low, b);
#else
    const I place = splat_int(1) << iota();
    const I mask = (splat_int(bits >> first) & place) != 0;
    a = mask ? b : low;
    b = mask ? low : b;
#endif
  }
};

// The lanes of a float vector as doubles, in order.
LIPVAE_INLINE void widen(Simd<float>::V v, Simd<double>::V& low, Simd<double>::V& high) {
  using D = Simd<double>::V;
#if defined(__AVX512F__)
  low = (D)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
  high = (D)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
  low = (D)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  high = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#elif defined(__SSE2__)
  low = (D)_mm_cvtps_pd((__m128)v);
  high = (D)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v));
#elif defined(__aarch64__)
  low = (D)vcvt_f64_f32(vget_low_f32((float32x4_t)v));
  high = (D)vcvt_high_f64_f32((float32x4_t)v);
#else
  for (int i = 0; i < Simd<double>::lanes; ++i) {
    low[i] = v[i];
    high[i] = v[Simd<double>::lanes + i];
  }
#endif
}

constexpr int memory_ahead = 4096;  // bytes, for what comes from memory

// Asks for the lines that come `distance` after the next `bytes`. The arithmetic of a line fills the
// window in which a core looks ahead, so without this each line's latency shows. Past the end of the
// data it asks in vain, without a fault.
template <int bytes>
LIPVAE_INLINE void prefetch_at(const void* p, std::int64_t distance) {
  constexpr int line = 64;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(p) + std::uintptr_t(distance);
  for (int offset = 0; offset < bytes; offset += line)
    __builtin_prefetch(reinterpret_cast<const void*>(address + std::uintptr_t(offset)));
}
template <int bytes, int distance = memory_ahead>
LIPVAE_INLINE void prefetch_ahead(const void* p) {
  prefetch_at<bytes>(p, distance);
}

// Orders streaming stores before whatever other threads read next.
LIPVAE_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace lipvae::LIPVAE_ISA
