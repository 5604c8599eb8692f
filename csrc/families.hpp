// The families whose parameters of one dimension meet in one expression: all but categorical256.
//
// add() adds the log density of one vector of dimensions to a Block; gradient() writes its
// derivatives, times the gradient of the sum. p holds the vector of each parameter.
#pragma once

#include "vector_math.hpp"

namespace lipvae::LIPVAE_ISA {

// The log density of a few hundred dimensions in the making: linear - log(growing) +- log(scaled).
// scaled_sign says which.
template <class T>
struct Block {
  typename Simd<T>::V& linear;
  GrowingProduct<T>& growing;
  ScaledProduct<T>& scaled;
};

template <class T>
LIPVAE_INLINE typename Simd<T>::V relu(typename Simd<T>::V x) {
  return Simd<T>::max(x, typename Simd<T>::V{});
}

// 1 / (1 + e^-x)
template <class T>
LIPVAE_INLINE typename Simd<T>::V sigmoid(typename Simd<T>::V x) {
  using S = Simd<T>;
  const typename S::V e = exp<T>(-S::abs(x)), one = S::splat(T(1));
  return (x < typename S::V{} ? e : one) / (one + e);
}

// x l - log(1 + e^l), the logit l. log(1 + e^l) = max(l, 0) + log(1 + e^-|l|).
template <class T>
struct Bernoulli {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int planes = 1;
  static constexpr bool uses_growing = true;
  static constexpr int scaled_sign = 0;
  static constexpr double constant = 0.0;
  template <bool partial>
  static LIPVAE_INLINE void add(Block<T> block, const V* p, V x, I valid) {
    const V l = p[0];
    V e = exp_minus<T>(S::abs(l));
    if constexpr (partial) e = S::keep(valid, e);
    block.linear += x * l - relu<T>(l);
    block.growing.grow(e);
  }
  static LIPVAE_INLINE void gradient(const V* p, V x, V g, V* d) { d[0] = g * (x - sigmoid<T>(p[0])); }
};

// The Bernoulli density over its integral on [0, 1] (Loaiza-Ganem & Cunningham 2019). With a = |l|:
// x l - max(l, 0) + log(a / (1 - e^-a)).
template <class T>
struct ContinuousBernoulli {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int planes = 1;
  static constexpr bool uses_growing = false;
  static constexpr int scaled_sign = 1;
  static constexpr double constant = 0.0;
  template <bool partial>
  static LIPVAE_INLINE void add(Block<T> block, const V* p, V x, I) {
    const V l = p[0];  // a padded lane has l = 0 and adds log 1
    block.linear += x * l - relu<T>(l);
    block.scaled.multiply(decay_ratio<T>(S::abs(l)));
  }
  // The mean is 1 / (1 - e^-a) - 1 / a for l = a, and one minus that for l = -a.
  static LIPVAE_INLINE void gradient(const V* p, V x, V g, V* d) {
    const V l = p[0], a = S::abs(l), one = S::splat(T(1)), square = a * a;
    constexpr T limit = sizeof(T) == 4 ? T(0.5) : T(0.1);
    // Bernoulli numbers: the mean is 1/2 + a/12 - a^3/720 + a^5/30240 - a^7/1209600 + ...
    const V series = S::splat(T(0.5)) +
                     a * (S::splat(T(1.0 / 12)) -
                          square * (S::splat(T(1.0 / 720)) -
                                    square * (S::splat(T(1.0 / 30240)) -
                                              square * (S::splat(T(1.0 / 1209600)) -
                                                        square * S::splat(T(1.0 / 47900160))))));
    const V safe = a < S::splat(limit) ? one : a;
    const V closed = one / one_minus_exp_minus<T>(safe) - one / safe;
    const V mean = a < S::splat(limit) ? series : closed;
    d[0] = g * (x - (l < V{} ? one - mean : mean));
  }
};

// Normal density of mean m and log scale s.
template <class T>
struct Gaussian {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int planes = 2;
  static constexpr bool uses_growing = false;
  static constexpr int scaled_sign = 0;
  static constexpr double constant = -0.91893853320467274178;  // -log(2 pi) / 2
  template <bool partial>
  static LIPVAE_INLINE void add(Block<T> block, const V* p, V x, I) {
    const V z = (x - p[0]) * exp<T>(-p[1]);  // a padded lane has x = m = s = 0 and adds 0
    block.linear -= S::splat(T(0.5)) * z * z + p[1];
  }
  static LIPVAE_INLINE void gradient(const V* p, V x, V g, V* d) {
    const V inverse = exp<T>(-p[1]), z = (x - p[0]) * inverse;
    d[0] = g * (z * inverse);
    d[1] = g * (z * z - S::splat(T(1)));
  }
};

// Mass of a logistic of mean m and log scale s on the bin of x, one of 256 on [0, 1]; the outer bins
// reach to infinity (Salimans et al. 2017). With u and v the ends in units of the scale and
// delta = u - v: log(sigma(u) - sigma(v)) = -log(1 + e^-u) - log(1 + e^v) + log(1 - e^-delta).
template <class T>
struct DiscretizedLogistic {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int planes = 2;
  static constexpr bool uses_growing = true;
  static constexpr int scaled_sign = -1;
  static constexpr double constant = 0.0;
  static constexpr T half_bin = T(1.0 / 510), log_bin = T(-5.5412635451584261463);  // log(1 / 255)

  struct Ends {
    V u, v, inverse, width;
    I low, high;
  };
  // Infinite ends would meet a zero factor in the gradient. A NaN passes.
  static LIPVAE_INLINE V finite(V x) {
    constexpr T limit = sizeof(T) == 4 ? T(3e38) : T(1e308);
    return S::max(S::splat(-limit), S::min(S::splat(limit), x));
  }
  static LIPVAE_INLINE Ends ends(const V* p, V x) {
    const V inverse = exp<T>(-p[1]);
    return {finite(((x - p[0]) + S::splat(half_bin)) * inverse),
            finite(((x - p[0]) - S::splat(half_bin)) * inverse),
            inverse,
            inverse * S::splat(T(1.0 / 255)),
            x < S::splat(T(0.5 / 255)),
            x > S::splat(T(254.5 / 255))};
  }
  template <bool partial>
  static LIPVAE_INLINE void add(Block<T> block, const V* p, V x, I valid) {
    const Ends at = ends(p, x);
    const I inside = ~(at.low | at.high);
    I has_u = ~at.high, has_v = ~at.low, has_width = inside;
    if constexpr (partial) {
      has_u &= valid;
      has_v &= valid;
      has_width &= valid;
    }
    // log(1 - e^-delta) = log delta - log(delta / (1 - e^-delta)), and log delta = log_bin - s.
    const V log_scale = S::max(S::splat(-ExpConstants<T>::max), p[1]);  // as far as exp goes
    const V linear = S::keep(has_width, S::splat(log_bin) - log_scale) -
                     S::keep(has_u, relu<T>(-at.u)) - S::keep(has_v, relu<T>(at.v));
    block.linear += linear;
    block.growing.grow(S::keep(has_u, exp_minus<T>(S::abs(at.u))));
    block.growing.grow(S::keep(has_v, exp_minus<T>(S::abs(at.v))));
    const V ratio = decay_ratio<T>(at.width), one = S::splat(T(1));
    block.scaled.multiply(has_width ? ratio : one);
  }
  static LIPVAE_INLINE void gradient(const V* p, V x, V g, V* d) {
    const Ends at = ends(p, x);
    const V upper = S::keep(~at.high, sigmoid<T>(-at.u)), lower = S::keep(~at.low, sigmoid<T>(at.v));
    // delta / (e^delta - 1) = delta / (1 - e^-delta) - delta
    const V share = S::keep(~(at.low | at.high), exp<T>(-at.width) * decay_ratio<T>(at.width));
    d[0] = g * (at.inverse * (lower - upper));
    d[1] = g * (at.v * lower - at.u * upper - share);
  }
};

}  // namespace lipvae::LIPVAE_ISA
