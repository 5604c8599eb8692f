// Square root, logarithm and circular functions of vectors; exp is in vector_math.hpp. Arguments are
// reduced exactly and the polynomials are Taylor's, as long as the reduced interval needs. Errors are
// a few ulp.
#pragma once

#include "vector_math.hpp"

namespace lipvae::LIPVAE_ISA {

template <class T>
using Vec = typename Simd<T>::V;
template <class T>
using IntVec = typename Simd<T>::I;

LIPVAE_INLINE Vec<float> sqrt(Vec<float> v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (Vec<float>)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < Simd<float>::lanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
LIPVAE_INLINE Vec<double> sqrt(Vec<double> v) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_sqrt_pd((__m128d)v);
#elif defined(__aarch64__)
  return (Vec<double>)vsqrtq_f64((float64x2_t)v);
#else
  for (int i = 0; i < Simd<double>::lanes; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

template <class T>
LIPVAE_INLINE Vec<T> convert(IntVec<T> v) {
  return __builtin_convertvector(v, Vec<T>);
}
// int64 to double has no instruction before AVX-512; for |v| < 2^51 an addition does it.
template <>
LIPVAE_INLINE Vec<double> convert<double>(IntVec<double> v) {
  constexpr double shift = 0x1.8p52;
  return (Vec<double>)(v + (IntVec<double>)Simd<double>::splat(shift)) - shift;
}

// There is no arithmetic shift of 64-bit lanes before AVX-512.
template <class T>
LIPVAE_INLINE IntVec<T> shift_right_logical(IntVec<T> v, int count) {
  if constexpr (sizeof(T) == 4) {
    typedef std::uint32_t U __attribute__((vector_size(vector_bytes)));
    return (IntVec<T>)((U)v >> count);
  } else {
    typedef std::uint64_t U __attribute__((vector_size(vector_bytes)));
    return (IntVec<T>)((U)v >> count);
  }
}

// log of a normal x > 0. `near` is x - 1, used as given where x is within [1/sqrt 2, sqrt 2).
template <class T>
LIPVAE_INLINE Vec<T> log(Vec<T> x, Vec<T> near) {
  using S = Simd<T>;
  using Int = typename S::Int;
  constexpr int mantissa = Scalar<T>::mantissa_bits, high_bit = 8 * int(sizeof(T)) - 2;
  const IntVec<T> bits = (IntVec<T>)x;
  const IntVec<T> lifted = (bits - (IntVec<T>)S::splat(T(0.70710678118654752440))) +
                           S::splat_int(Int(1) << high_bit);
  // The exponent k with x / 2^k in [1/sqrt 2, sqrt 2).
  const IntVec<T> k =
      shift_right_logical<T>(lifted, mantissa) - S::splat_int(Int(1) << (high_bit - mantissa));
  const Vec<T> m = (Vec<T>)(bits - (k << mantissa));
  const Vec<T> f = k == 0 ? near : m - T(1);
  const Vec<T> s = f / (f + T(2)), z = s * s;  // log m = 2 artanh s, |s| < 0.1716
  Vec<T> p;
  if constexpr (sizeof(T) == 4) {
    constexpr float odd[] = {1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9};
    p = horner<T>(odd, z);
  } else {
    constexpr double odd[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                              1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
    p = horner<T>(odd, z);
  }
  const Vec<T> exponent = convert<T>(k), twice = s + s;
  return exponent * ExpConstants<T>::ln2_high + (twice + (twice * z * p + exponent * ExpConstants<T>::ln2_low));
}
template <class T>
LIPVAE_INLINE Vec<T> log(Vec<T> x) {
  return log<T>(x, x - T(1));
}

struct ExpPair {
  Vec<double> exp, expm1;
};
// e^x and e^x - 1, each to its own relative precision; x <= 700, and below -700 like -700.
LIPVAE_INLINE ExpPair exp_pair(Vec<double> x) {
  const Reduced<double> part = reduce<double>(Simd<double>::max(x, Simd<double>::splat(-700.0)));
  const Vec<double> tail = part.scale * (part.r * horner<double>(ExpConstants<double>::expm1, part.r));
  return {part.scale + tail, (part.scale - 1.0) + tail};
}

template <class T>
struct SinCos {
  Vec<T> sin, cos;
};
// Of (quarter + f) quarter turns, |f| <= 1/2.
template <class T>
LIPVAE_INLINE SinCos<T> sin_cos_quarters(IntVec<T> quarter, Vec<T> f) {
  using S = Simd<T>;
  const Vec<T> a = f * T(1.57079632679489661923), z = a * a;
  Vec<T> sine, cosine;
  if constexpr (sizeof(T) == 4) {
    constexpr float odd[] = {-1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
    constexpr float even[] = {1.0f, -1.0f / 2, 1.0f / 24, -1.0f / 720, 1.0f / 40320};
    sine = horner<T>(odd, z);
    cosine = horner<T>(even, z);
  } else {
    constexpr double odd[] = {-1.0 / 6,        1.0 / 120,         -1.0 / 5040,         1.0 / 362880,
                              -1.0 / 39916800, 1.0 / 6227020800., -1.0 / 1307674368e3, 1.0 / 355687428096e3};
    constexpr double even[] = {1.0,           -1.0 / 2,          1.0 / 24,          -1.0 / 720,
                               1.0 / 40320,   -1.0 / 3628800,    1.0 / 479001600,   -1.0 / 87178291200.,
                               1.0 / 20922789888e3};
    sine = horner<T>(odd, z);
    cosine = horner<T>(even, z);
  }
  sine = a + a * z * sine;
  const IntVec<T> swap = (quarter & 1) != 0;
  constexpr int to_sign = 8 * int(sizeof(T)) - 2;  // moves bit 1 of the quarter to the sign
  const IntVec<T> sign = S::splat_int(S::sign_bit);
  return {(Vec<T>)((IntVec<T>)(swap ? cosine : sine) ^ ((quarter << to_sign) & sign)),
          (Vec<T>)((IntVec<T>)(swap ? sine : cosine) ^ (((quarter + 1) << to_sign) & sign))};
}
// Of any number of quarter turns below 2^50.
LIPVAE_INLINE SinCos<double> sin_cos_quarters(Vec<double> quarters) {
  const Vec<double> magic = Simd<double>::splat(ExpConstants<double>::magic);
  const Vec<double> shifted = quarters + magic;
  return sin_cos_quarters<double>((IntVec<double>)shifted, quarters - (shifted - magic));
}

// asin x for x in [0, 1/sqrt 2], by two half-angle steps.
LIPVAE_INLINE Vec<double> asin_small(Vec<double> x) {
  for (int i = 0; i < 2; ++i) x = x / sqrt((sqrt(1.0 - x * x) + 1.0) * 2.0);
  const Vec<double> z = x * x;  // at most sin^2(pi / 16)
  Vec<double> p = Simd<double>::splat(0.0);
  for (int n = 11; n >= 1; --n) {  // from the ratios of successive terms of asin's series
    const double ratio = double(2 * n - 1) * (2 * n - 1) / (double(2 * n) * (2 * n + 1));
    p = (p + 1.0) * z * ratio;
  }
  return 4.0 * (x + x * p);
}

}  // namespace lipvae::LIPVAE_ISA
