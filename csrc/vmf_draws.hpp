// The scalar part of a von Mises-Fisher sample, equation (4): t = 1 - <mu, x>.
//
// Wood's envelope (Wood 1994) with d = m - 1: b = d / (2 kappa + sqrt(4 kappa^2 + d^2)),
// x0 = (1 - b) / (1 + b), t0 = 1 - x0, a symmetric Beta variable X on [-1, 1] and y = x0 X give
//
//   t = t0 (1 + X) / (1 - y),  accepted where  log U <= -d (y / (1 - y) + log(1 - y)).
//
// X has the density (1 - X^2)^((m-3)/2): X = sqrt(1 - U1^(2/(m-2))) cos(2 pi U2) (Ulrich 1984), and
// cos(2 pi U2) for m = 2. No step subtracts numbers that nearly cancel, so t keeps its digits at any
// kappa. At least 0.65 of all proposals are accepted. m = 3 has a closed form.
//
// Attempt j of sample `index` uses block j of (stream_t, index): U1 from words 0 and 1, U2 and U from
// words 2 and 3. For m = 2, U2 is words 0 and 1, U is words 2 and 3, and the lowest bit of word 0,
// which no uniform number uses, is the sign of the tangent. For m = 3, words 2 and 3 are its angle.
#pragma once

#include "elementary.hpp"
#include "philox.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr std::uint32_t vmf_stream_t = 0x766D6601u, vmf_stream_tangent = 0x766D6602u;
// All fail with a probability below 1e-58; the last proposal then stands.
constexpr int vmf_attempts = 128;

// A chunk of samples, in double: what they need, and what is drawn for them.
struct VmfChunk {
  static constexpr int capacity = 256;
  double kappa[capacity + 8];
  std::uint64_t index[capacity + 8];
  double t[capacity + 8];
  double cosine[capacity + 8], sine[capacity + 8];  // of the tangent's angle: m = 2 (sign), m = 3
};

struct Envelope {
  Vec<double> x0, t0;
};
LIPVAE_INLINE Envelope envelope(Vec<double> kappa, double d) {
  const Vec<double> twice = kappa + kappa;
  const Vec<double> ratio = twice / d;
  // Without the square of a large kappa.
  const Vec<double> b = 1.0 / (ratio + sqrt(ratio * ratio + 1.0));
  return {(1.0 - b) / (1.0 + b), (b + b) / (1.0 + b)};
}

struct Proposal {
  Vec<double> t;
  IntVec<double> accepted;
};
// From 1 + X, 1 - X and the uniform number of the test.
LIPVAE_INLINE Proposal propose(Envelope e, double d, Vec<double> plus, Vec<double> minus, Vec<double> u) {
  const Vec<double> y = e.x0 * ((plus - minus) * 0.5);
  const Vec<double> rest = e.t0 + e.x0 * minus;  // 1 - y
  const Vec<double> excess = log<double>(u) + (y / rest + log<double>(rest)) * d;
  // Written so that a NaN is accepted and shows up in the sample.
  return {e.t0 * plus / rest, ~(excess > 0.0)};
}

LIPVAE_INLINE Proposal attempt_circle(Envelope e, PhiloxWords w, Vec<double>& sign) {
  const SinCos<double> half = sin_cos_quarters(uniform52(w.word[0], w.word[1]) * 2.0);
  sign = (Vec<double>)((IntVec<double>)Simd<double>::splat(1.0) | (IntVec<double>)(w.word[0] << 63));
  return propose(e, 1.0, 2.0 * half.cos * half.cos, 2.0 * half.sin * half.sin,
                 uniform52(w.word[2], w.word[3]));
}

LIPVAE_INLINE Proposal attempt(Envelope e, double d, double exponent, PhiloxWords w) {
  // 1 - R^2 = U1^exponent, and 1 - X^2 = (1 - R^2) + R^2 sin^2.
  const ExpPair power = exp_pair(log<double>(uniform52(w.word[0], w.word[1])) * exponent);
  const SinCos<double> angle = sin_cos_quarters(uniform32(w.word[2]) * 4.0);
  const Vec<double> radius_squared = -power.expm1;
  const Vec<double> rest = power.exp + radius_squared * angle.sin * angle.sin;
  const Vec<double> x = sqrt(radius_squared) * angle.cos;
  const Vec<double> large = 1.0 + Simd<double>::abs(x), small = rest / large;
  const IntVec<double> positive = x >= 0.0;
  return propose(e, d, positive ? large : small, positive ? small : large, uniform32(w.word[3]));
}

// m = 3: kappa t = -log(1 - V (1 - e^(-2 kappa))).
LIPVAE_INLINE Vec<double> sphere_t(Vec<double> kappa, Vec<double> v) {
  const Vec<double> z = -v * exp_pair(kappa * -2.0).expm1;
  const Vec<double> t = -log<double>(1.0 - z, -z) / kappa;
  return kappa == 0.0 ? v + v : t;
}

// Fills t, and the tangent's angle for m = 2 and 3, of the first count samples.
LIPVAE_INLINE void draw_t(VmfChunk& chunk, int count, const PhiloxKey& key, std::int64_t dim) {
  constexpr int lanes = Simd<double>::lanes;
  const Counters stream = splat_counter(vmf_stream_t);
  const double d = double(dim - 1);
  if (dim == 3) {
    for (int i = 0; i < count; i += lanes) {
      Counters index;
      __builtin_memcpy(&index, chunk.index + i, sizeof index);
      const PhiloxWords w = philox(key, Counters{}, stream, index);
      const Vec<double> kappa = Simd<double>::load(chunk.kappa + i);
      Simd<double>::store(chunk.t + i, sphere_t(kappa, uniform52(w.word[0], w.word[1])));
      const SinCos<double> angle = sin_cos_quarters(uniform52(w.word[2], w.word[3]) * 4.0);
      Simd<double>::store(chunk.sine + i, angle.sin);
      Simd<double>::store(chunk.cosine + i, angle.cos);
    }
    return;
  }
  // Round j tries once more for every sample that is left; `left` lists them.
  int left[VmfChunk::capacity + 8];
  for (int i = 0; i < count; ++i) left[i] = i;
  const double exponent = dim > 2 ? 2.0 / double(dim - 2) : 0.0;
  for (int j = 0, remaining = count; remaining > 0 && j < vmf_attempts; ++j) {
    int kept = 0;
    for (int i = remaining; i < remaining + lanes; ++i) left[i] = left[remaining - 1];
    for (int i = 0; i < remaining; i += lanes) {
      Counters index;
      Vec<double> kappa;
      for (int l = 0; l < lanes; ++l) {
        index[l] = chunk.index[left[i + l]];
        kappa[l] = chunk.kappa[left[i + l]];
      }
      const PhiloxWords w = philox(key, splat_counter(std::uint64_t(j)), stream, index);
      Vec<double> sign{};
      const Proposal p = dim == 2 ? attempt_circle(envelope(kappa, d), w, sign)
                                  : attempt(envelope(kappa, d), d, exponent, w);
      const int valid = remaining - i < lanes ? remaining - i : lanes;
      for (int l = 0; l < valid; ++l) {
        const int at = left[i + l];
        chunk.t[at] = p.t[l];
        if (dim == 2) chunk.cosine[at] = sign[l];
        left[kept] = at;
        kept += p.accepted[l] == 0;
      }
    }
    remaining = kept;
  }
}

}  // namespace lipvae::LIPVAE_ISA
