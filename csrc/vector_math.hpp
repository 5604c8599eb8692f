// exp, 1 - exp(-x) and products whose logarithm is taken once for many factors.
#pragma once

#include "lanes.hpp"

namespace lipvae::LIPVAE_ISA {

// 2^r on |r| <= 1/2: minimax for the relative error, 9.1e-8 (constant term fixed at 1) and 3.1e-18;
// (e^r - 1) / r on |r| <= ln 2 / 2 likewise, 1.1e-8 and 2.4e-19. ln 2 is split so that n * ln2_high
// is exact.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float scale_magic = magic + 127;  // and this leaves the exponent of 2^n in the low bits
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float min = -87.33f, max = 88.37f;  // 2^n stays a normal number
  static constexpr float negligible = 80.0f;           // e^-80 / 1000 is a normal number
  static constexpr float slope_of_exp2[] = {0.693146978f, 0.240222421f, 0.0555073392f, 0.00967151151f,
                                            0.00132646661f};
  static constexpr float expm1[] = {1.0f,           0.499999981f,   0.166665059f,
                                    0.0416671371f,  0.00836910429f, 0.00138888736f};
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0, scale_magic = magic + 1023;  // 1.5 * 2^52
  static constexpr double log2e = 1.442695040888963407;
  static constexpr double ln2_high = 0.6931471803691238164901733, ln2_low = 1.9082149292705878161e-10;
  static constexpr double min = -708.3, max = 709.4, negligible = 680.0;
  static constexpr double slope_of_exp2[] = {0.6931471805599453306,
                                             0.2402265069591015663,
                                             0.05550410866481991319,
                                             0.009618129107588175232,
                                             0.001333355814679139606,
                                             0.0001540353046272119047,
                                             0.00001525273348901893572,
                                             1.321543298257770107e-6,
                                             1.01781982571957289e-7,
                                             7.074124760263731559e-9,
                                             4.43527070442771391e-10};
  static constexpr double expm1[] = {1.0,
                                     0.5,
                                     0.166666666666666807,
                                     0.0416666666666664916,
                                     0.00833333333331964551,
                                     0.0013888888888965435,
                                     0.00019841269889960807,
                                     0.000024801587172114294,
                                     2.75572409832241315e-6,
                                     2.75574000459231418e-7,
                                     2.51100218986877068e-8,
                                     2.08767524736242711e-9};
};

template <class T, int n>
LIPVAE_INLINE typename Simd<T>::V horner(const T (&coefficient)[n], typename Simd<T>::V x) {
  typename Simd<T>::V sum = Simd<T>::splat(coefficient[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; --i) sum = sum * x + Simd<T>::splat(coefficient[i]);
  return sum;
}

template <class T>
struct Reduced {
  typename Simd<T>::V r;      // x - n ln 2
  typename Simd<T>::V scale;  // 2^n
};

template <class T>
LIPVAE_INLINE Reduced<T> reduce(typename Simd<T>::V x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const typename S::V magic = S::splat(C::scale_magic), shifted = x * S::splat(C::log2e) + magic;
  const typename S::V n = shifted - magic;
  return {(x - n * S::splat(C::ln2_high)) - n * S::splat(C::ln2_low),
          (typename S::V)((typename S::I)shifted << Scalar<T>::mantissa_bits)};
}

// e^x. Finite for every finite x: above its range it stays at about the largest number, below it
// is 0. NaN stays NaN.
template <class T>
LIPVAE_INLINE typename Simd<T>::V exp(typename Simd<T>::V x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  // The constant is the first operand, so a NaN in x passes through.
  const typename S::V clamped = S::max(S::splat(C::min), S::min(S::splat(C::max), x));
  const Reduced<T> part = reduce<T>(clamped);
  const typename S::I underflow = x < S::splat(C::min);
  const typename S::V power = S::splat(T(1)) + part.r * horner(C::expm1, part.r);
  return S::keep(~underflow, power * part.scale);
}

// e^-x for x >= 0, to be added to a number not below 1: beyond `negligible` it stays as it is there.
// Few operations matter more here than the last digit: rounding log2(e) costs x e^-x of an epsilon,
// so nothing is left for a split constant to save. NaN stays NaN: an exponent added to the bits of a
// power would make a number of one.
template <class T>
LIPVAE_INLINE typename Simd<T>::V exp_minus(typename Simd<T>::V x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  using V = typename S::V;
  const V near = S::min(S::splat(C::negligible), x);
  const V magic = S::splat(C::scale_magic), log2e = S::splat(C::log2e);
  const V shifted = magic - near * log2e;
  const V r = (magic - shifted) - near * log2e;
  const V scale = (V)((typename S::I)shifted << Scalar<T>::mantissa_bits);
  return horner(C::slope_of_exp2, r) * (r * scale) + scale;
}

// 1 - e^-x for x >= 0, with the full relative precision near 0.
template <class T>
LIPVAE_INLINE typename Simd<T>::V one_minus_exp_minus(typename Simd<T>::V x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const Reduced<T> part = reduce<T>(-S::min(S::splat(-C::min), x));
  const typename S::V one = S::splat(T(1));
  return (one - part.scale) - part.scale * (part.r * horner(C::expm1, part.r));
}

// x / (1 - e^-x) for x >= 0; 1 at 0.
template <class T>
LIPVAE_INLINE typename Simd<T>::V decay_ratio(typename Simd<T>::V x) {
  using S = Simd<T>;
  const typename S::V one = S::splat(T(1));
  return x == typename S::V{} ? one : x / one_minus_exp_minus<T>(x);
}

// Calls body with the lanes of v as vectors of doubles.
template <class T, class Body>
LIPVAE_INLINE void for_each_double(typename Simd<T>::V v, Body&& body) {
  if constexpr (sizeof(T) == sizeof(double)) {
    body(v);
  } else {
    typename Simd<double>::V low, high;
    widen(v, low, high);
    body(low);
    body(high);
  }
}

// A product of factors in [1, 2] in each lane, less 1, so that factors near 1 keep their digits.
// 960 factors at most: 2^960 is a finite double, and 120 in a lane a finite float.
constexpr int max_factors = 960, max_lane_factors = 120;

template <class T>
struct GrowingProduct {
  typename Simd<T>::V less_one = {};
  // Multiplies by 1 + x, x in [0, 1].
  LIPVAE_INLINE void grow(typename Simd<T>::V x) { less_one = less_one * x + (less_one + x); }
  // The logarithm of the product over the lanes of several.
  template <int n>
  static LIPVAE_INLINE double log(const GrowingProduct (&products)[n]) {
    typename Simd<double>::V total = {};
    for (int i = 0; i < n; ++i)
      for_each_double<T>(products[i].less_one, [&](auto part) { total = total * part + (total + part); });
    const double all = fold_lanes(total, [](auto a, auto b) { return a * b + (a + b); });
    return all < 1.0 ? __builtin_log1p(all) : __builtin_log(1.0 + all);
  }
};

// A product of positive numbers of any size, as mantissas in [1, 2) and a sum of exponents.
template <class T>
struct ScaledProduct {
  typename Simd<T>::V mantissa = Simd<T>::splat(T(1));
  typename Simd<T>::I exponent = {};
  LIPVAE_INLINE void multiply(typename Simd<T>::V x) {
    using S = Simd<T>;
    using Int = typename S::Int;
    constexpr int bits = Scalar<T>::mantissa_bits;
    const typename S::I raw = (typename S::I)x;
    const typename S::I fraction = raw & S::splat_int((Int(1) << bits) - 1);
    exponent += (raw >> bits) - S::splat_int(Scalar<T>::exponent_bias);
    mantissa *= (typename S::V)(fraction | S::splat_int(Int(Scalar<T>::exponent_bias) << bits));
  }
  template <int n>
  static LIPVAE_INLINE double log(const ScaledProduct (&products)[n]) {
    typename Simd<double>::V total = Simd<double>::splat(1.0);
    typename Simd<T>::I exponents = {};
    for (int i = 0; i < n; ++i) {
      exponents += products[i].exponent;
      for_each_double<T>(products[i].mantissa, [&](auto part) { total *= part; });
    }
    std::int64_t exponent = 0;
    for (int i = 0; i < Simd<T>::lanes; ++i) exponent += exponents[i];
    return __builtin_log(multiply_lanes<double>(total)) + double(exponent) * 0.69314718055994530942;
  }
};

}  // namespace lipvae::LIPVAE_ISA
