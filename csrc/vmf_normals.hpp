// Standard normal numbers for the tangents of von Mises-Fisher samples, by Box & Muller.
//
// Block b of (stream_tangent, index) holds normals 4b .. 4b+3 of a float sample and 2b, 2b+1 of a
// double one. A pair (r cos, r sin) takes r^2 = -2 log U and a full turn's fraction from: two words
// (float: U = (word / 2 + 1/2) / 2^31), or two numbers of 52 bits (double).
#pragma once

#include "elementary.hpp"
#include "philox.hpp"

namespace lipvae::LIPVAE_ISA {

// Interleave the halves of each 16-byte block of two vectors.
template <class T>
LIPVAE_INLINE Vec<T> interleave_low(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_unpacklo_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_unpacklo_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm_unpacklo_ps((__m128)a, (__m128)b);
  else return (Vec<T>)_mm_unpacklo_pd((__m128d)a, (__m128d)b);
#else
  if constexpr (sizeof(T) == 4) return Vec<T>{a[0], b[0], a[1], b[1]};
  else return Vec<T>{a[0], b[0]};
#endif
}
template <class T>
LIPVAE_INLINE Vec<T> interleave_high(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_unpackhi_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_unpackhi_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm_unpackhi_ps((__m128)a, (__m128)b);
  else return (Vec<T>)_mm_unpackhi_pd((__m128d)a, (__m128d)b);
#else
  if constexpr (sizeof(T) == 4) return Vec<T>{a[2], b[2], a[3], b[3]};
  else return Vec<T>{a[1], b[1]};
#endif
}

// Stores the 16-byte blocks of v at out, out + stride, ..., stride in elements.
template <class T>
LIPVAE_INLINE void store_blocks(T* out, std::int64_t stride, Vec<T> v) {
#if defined(__AVX512F__)
  const __m512 w = (__m512)v;
  _mm_storeu_ps(reinterpret_cast<float*>(out), _mm512_castps512_ps128(w));
  _mm_storeu_ps(reinterpret_cast<float*>(out + stride), _mm512_extractf32x4_ps(w, 1));
  _mm_storeu_ps(reinterpret_cast<float*>(out + 2 * stride), _mm512_extractf32x4_ps(w, 2));
  _mm_storeu_ps(reinterpret_cast<float*>(out + 3 * stride), _mm512_extractf32x4_ps(w, 3));
#elif defined(__AVX2__)
  const __m256 w = (__m256)v;
  _mm_storeu_ps(reinterpret_cast<float*>(out), _mm256_castps256_ps128(w));
  _mm_storeu_ps(reinterpret_cast<float*>(out + stride), _mm256_extractf128_ps(w, 1));
#else
  (void)stride;
  Simd<T>::store(out, v);
#endif
}

// r cos and r sin from two words a lane.
LIPVAE_INLINE SinCos<float> box_muller(IntVec<float> radius, IntVec<float> turn) {
  using S = Simd<float>;
  const IntVec<float> i = shift_right_logical<float>(radius, 1);
  const Vec<float> u = (convert<float>(i) + 0.5f) * 0x1p-31f;
  // u - 1 from the complement, so that a u near 1 gives a radius with all its digits.
  const Vec<float> near = (convert<float>(S::splat_int(0x7fffffff) - i) + 0.5f) * -0x1p-31f;
  const Vec<float> r = sqrt(log<float>(u, near) * -2.0f);
  typedef std::uint32_t U __attribute__((vector_size(vector_bytes)));
  const IntVec<float> quarter = (IntVec<float>)((U)turn + (1u << 29)) >> 30;
  const IntVec<float> rest = (IntVec<float>)((U)turn - ((U)quarter << 30));
  const SinCos<float> angle = sin_cos_quarters<float>(quarter, convert<float>(rest) * 0x1p-30f);
  return {r * angle.sin, r * angle.cos};
}
LIPVAE_INLINE SinCos<double> box_muller(PhiloxWords w) {
  const Vec<double> r = sqrt(log<double>(uniform52(w.word[0], w.word[1])) * -2.0);
  const SinCos<double> angle = sin_cos_quarters(uniform52(w.word[2], w.word[3]) * 4.0);
  return {r * angle.sin, r * angle.cos};
}

// The counters of consecutive blocks, `blocks` of them for each of consecutive samples.
struct BlockWalk {
  Counters block, index, step_block, step_index, blocks;

  LIPVAE_INLINE BlockWalk(std::uint64_t index0, std::uint64_t count, int first, int stride, int step) {
    std::uint64_t block_lane[counter_lanes], index_lane[counter_lanes];
    for (int l = 0; l < counter_lanes; ++l) {
      const std::uint64_t flat = std::uint64_t(first + stride * l);
      block_lane[l] = flat % count;
      index_lane[l] = index0 + flat / count;
    }
    __builtin_memcpy(&block, block_lane, sizeof block);
    __builtin_memcpy(&index, index_lane, sizeof index);
    step_block = splat_counter(std::uint64_t(step) % count);
    step_index = splat_counter(std::uint64_t(step) / count);
    blocks = splat_counter(count);
  }
  LIPVAE_INLINE void advance() {
    block += step_block;
    index += step_index;
    const Counters wrapped = (Counters)((IntVec<double>)block >= (IntVec<double>)blocks);
    block -= wrapped & blocks;
    index -= wrapped;
  }
};

// Writes the normals of `samples` samples from index on, `blocks` blocks of 16 bytes each; the buffer
// has room for one vector's worth of blocks (4 vectors of float, 2 of double) beyond them.
inline void fill_normals(float* out, std::uint64_t index, std::int64_t samples, std::int64_t blocks,
                         const PhiloxKey& key) {
  constexpr int lanes = Simd<float>::lanes;  // two vectors of counters: even and odd blocks
  BlockWalk even(index, std::uint64_t(blocks), 0, 2, lanes), odd(index, std::uint64_t(blocks), 1, 2, lanes);
  const Counters stream = splat_counter(vmf_stream_tangent);
  for (std::int64_t flat = 0; flat < samples * blocks; flat += lanes, even.advance(), odd.advance()) {
    const PhiloxWords a = philox(key, even.block, stream, even.index);
    const PhiloxWords b = philox(key, odd.block, stream, odd.index);
    IntVec<float> word[4];
    for (int i = 0; i < 4; ++i)
      word[i] = (IntVec<float>)((a.word[i] & 0xffffffffu) | (b.word[i] << 32));
    const SinCos<float> p = box_muller(word[0], word[1]), q = box_muller(word[2], word[3]);
    const Vec<double> p_low = (Vec<double>)interleave_low<float>(p.cos, p.sin);
    const Vec<double> p_high = (Vec<double>)interleave_high<float>(p.cos, p.sin);
    const Vec<double> q_low = (Vec<double>)interleave_low<float>(q.cos, q.sin);
    const Vec<double> q_high = (Vec<double>)interleave_high<float>(q.cos, q.sin);
    float* at = out + 4 * flat;
    store_blocks<float>(at, 16, (Vec<float>)interleave_low<double>(p_low, q_low));
    store_blocks<float>(at + 4, 16, (Vec<float>)interleave_high<double>(p_low, q_low));
    store_blocks<float>(at + 8, 16, (Vec<float>)interleave_low<double>(p_high, q_high));
    store_blocks<float>(at + 12, 16, (Vec<float>)interleave_high<double>(p_high, q_high));
  }
}
inline void fill_normals(double* out, std::uint64_t index, std::int64_t samples, std::int64_t blocks,
                         const PhiloxKey& key) {
  constexpr int lanes = Simd<double>::lanes;
  BlockWalk walk(index, std::uint64_t(blocks), 0, 1, lanes);
  const Counters stream = splat_counter(vmf_stream_tangent);
  for (std::int64_t flat = 0; flat < samples * blocks; flat += lanes, walk.advance()) {
    const SinCos<double> p = box_muller(philox(key, walk.block, stream, walk.index));
    store_blocks<double>(out + 2 * flat, 4, interleave_low<double>(p.cos, p.sin));
    store_blocks<double>(out + 2 * flat + 2, 4, interleave_high<double>(p.cos, p.sin));
  }
}

}  // namespace lipvae::LIPVAE_ISA
