// Passes over one row of weights.
#pragma once

#include "l1_fetch.hpp"
#include "lanes.hpp"

namespace lipvae::LIPVAE_ISA {

// Applies body(vector, its place in `unroll`) to the row, and line() between; a last partial vector is padded
// with zeros.
template <int unroll, class T, class Body, class Line>
LIPVAE_INLINE void for_each_vector(const T* w, std::int64_t n, Body&& body, Line&& line) {
  using S = Simd<T>;
  std::int64_t i = 0;
  for (; i + unroll * S::lanes <= n; i += unroll * S::lanes) {
    line();
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) body(S::load(w + i + u * S::lanes), u);
  }
  for (; i + S::lanes <= n; i += S::lanes) body(S::load(w + i), 0);
  if (i < n) body(S::load_first(w + i, n - i), 0);
}

template <int unroll, class T, class Body>
LIPVAE_INLINE void for_each_vector(const T* w, std::int64_t n, Body&& body) {
  for_each_vector<unroll>(w, n, body, [] {});
}

// Applies body(vector, its place among the vectors of 16 elements) to the row, likewise padded. The place is a
// constant, or accumulators that it picks would live in memory.
template <class T, class Body>
LIPVAE_INLINE void for_each_sixteen(const T* w, std::int64_t n, Body&& body) {
  using S = Simd<T>;
  constexpr int vectors = 16 / S::lanes;
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) body(S::load(w + i + vector * S::lanes), vector);
  if (i < n)
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) {
      const T* p = w + i + vector * S::lanes;
      const std::int64_t left = n - i - vector * S::lanes;
      if (left > 0) body(left < S::lanes ? S::load_first(p, left) : S::load(p), vector);
    }
}

template <class T, class Fetch>
LIPVAE_INLINE T row_norm(const T* w, std::int64_t n, Fetch& fetch) {
  using S = Simd<T>;
  typename S::V sum[4] = {};
  for_each_vector<4>(w, n, [&](typename S::V v, int u) { sum[u] += S::abs(v); }, [&] { fetch.line(); });
  return add_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
struct Excess {
  T sum;               // sum of |w| - t over |w| > t
  std::int64_t count;  // of |w| > t
};

// The differences |w| - t are exact near t, so the sum keeps its digits where radius << max |w|. It is a
// NaN if the row holds one.
template <class T, class Fetch>
LIPVAE_INLINE Excess<T> row_excess(const T* w, std::int64_t n, T t, Fetch& fetch) {
  using S = Simd<T>;
  typename S::V sum[4] = {};
  typename S::I count[2] = {};
  const typename S::V level = S::splat(t);
  auto add = [&](typename S::V v, int u) {
    const typename S::V a = S::abs(v);
    const typename S::Mask above = S::not_at_most(a, level);  // a NaN too
    sum[u] = S::add_where(above, sum[u], a - level);
    count[u & 1] = S::count_where(above, count[u & 1]);
  };
  for_each_vector<4>(w, n, add, [&] { fetch.line(); });
  return {add_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3])), count_lanes<T>(count[0] + count[1])};
}

template <class T>
LIPVAE_INLINE std::int64_t row_count(const T* w, std::int64_t n, T t) {
  using S = Simd<T>;
  typename S::I count[4] = {};
  const typename S::V level = S::splat(t);
  for_each_vector<4>(w, n, [&](typename S::V v, int u) {
    count[u] = S::count_where(S::greater(S::abs(v), level), count[u]);
  });
  return count_lanes<T>((count[0] + count[1]) + (count[2] + count[3]));
}

// The sum of n vectors: the upper half on the lower, and so on.
template <int n, class Vector>
LIPVAE_INLINE Vector add_halves(Vector* v) {
  if constexpr (n > 1) {
#pragma GCC unroll 8
    for (int j = 0; j < n / 2; ++j) v[j] += v[j + n / 2];
    return add_halves<n / 2>(v);
  } else {
    return v[0];
  }
}

struct ActiveSum {
  double sum;  // of |w| over |w| > t
  std::int64_t count;
};

// Element i always goes to accumulator i % 16, so every instruction set returns the same double.
template <class T>
LIPVAE_INLINE ActiveSum row_active_sum(const T* w, std::int64_t n, T t) {
  using S = Simd<T>;
  using D = Simd<double>;
  constexpr int accumulators = 16 / D::lanes;
  typename D::V sum[accumulators] = {};
  typename S::I count{};
  const typename S::V level = S::splat(t);
  auto add = [&](typename S::V v, int vector) {
    const typename S::V a = S::abs(v);
    const typename S::Mask active = S::greater(a, level);
    count = S::count_where(active, count);
    const typename S::V kept = S::keep(active, a);
    if constexpr (sizeof(T) == sizeof(double)) {
      sum[vector] += kept;
    } else {
      typename D::V low, high;
      widen(kept, low, high);
      sum[2 * vector] += low;
      sum[2 * vector + 1] += high;
    }
  };
  for_each_sixteen(w, n, add);
  // As if the 16 were the lanes of one vector.
  return {add_lanes<double>(add_halves<accumulators>(sum)), count_lanes<T>(count)};
}

// The sum of |w| over |w| > t in two parts, for t > 0: of the upper bits of each and of the rest.
struct SplitSum {
  float upper, lower;
  std::int64_t count;
  bool exact;
};

// |w| > t is a multiple of t's last digit u, its upper bits of 2^12 u. Partial sums only grow, so they are
// exact if the last is less than 2^24 multiples; then neither order nor lanes matter.
constexpr float split_limit = 8192.0f;  // times t: an upper sum beyond it is not exact
LIPVAE_INLINE SplitSum row_split_sum(const float* w, std::int64_t n, float t) {
  using S = Simd<float>;
  S::V upper[2] = {}, lower[2] = {};
  S::I count[2] = {};
  const S::V level = S::splat(t);
  const S::I mask = S::splat_int(0x7ffff000);
  for_each_vector<4>(w, n, [&](S::V v, int u) {
    const S::V a = S::abs(v);
    const S::Mask active = S::greater(a, level);
    const S::V kept = S::keep(active, a), part = S::keep(mask, kept);
    count[u & 1] = S::count_where(active, count[u & 1]);
    upper[u & 1] += part;
    lower[u & 1] += kept - part;
  });
  const float up = add_lanes<float>(upper[0] + upper[1]), low = add_lanes<float>(lower[0] + lower[1]);
  std::int32_t bits;
  __builtin_memcpy(&bits, &t, sizeof bits);
  bits &= 0x7f800000;
  float power;  // of two, at most t: 2^23 u
  __builtin_memcpy(&power, &bits, sizeof power);
  return {up, low, count_lanes<float>(count[0] + count[1]), up < split_limit * power && low < 2.0f * power};
}

// The largest T not above tau: |w| > tau iff |w| > round_down(tau), for w of type T.
LIPVAE_INLINE double round_down(double tau, double) { return tau; }
LIPVAE_INLINE float round_down(double tau, float) {
  const float nearest = float(tau);
  std::int32_t bits;
  __builtin_memcpy(&bits, &nearest, sizeof bits);
  // A coin toss, so not a branch. tau >= 0, and nearest > 0 if it is above tau.
  bits -= std::int32_t(double(nearest) > tau);
  float below;
  __builtin_memcpy(&below, &bits, sizeof below);
  return below;
}

// tau as the sum of two numbers of type T, and rounded down. Rounding is monotone, so |w| > tau, which is
// |w| > level, implies (|w| - high) - low >= 0.
template <class T>
struct SplitThreshold {
  T high, low, level;
};
LIPVAE_INLINE SplitThreshold<double> split(double tau, double) { return {tau, 0.0, tau}; }
LIPVAE_INLINE SplitThreshold<float> split(double tau, float) {
  const float high = float(tau);
  return {high, float(tau - double(high)), round_down(tau, 0.0f)};
}

struct StoredSum {
  double sum, error;  // the sum is sum + error
  std::int64_t count;
};

// Sum of the projected row as it is stored, without rounding (Knuth's two-sum, in eight streams: element i goes
// to stream i % 8 whatever the instruction set).
template <class T>
inline StoredSum row_stored_sum(const T* w, std::int64_t n, double tau) {
  using S = Simd<T>;
  using D = Simd<double>;
  constexpr int streams = 8, accumulators = streams / D::lanes;
  const SplitThreshold<T> parts = split(tau, T());
  const typename S::V level = S::splat(parts.level), high = S::splat(parts.high), low = S::splat(parts.low);
  typename D::V sums[accumulators] = {}, errors[accumulators] = {};
  typename S::I count{};
  auto two_sum = [](auto& total, auto& lost, auto x) __attribute__((always_inline)) {
    const auto next = total + x, back = next - total;
    lost += (total - (next - back)) + (x - back);
    total = next;
  };
  auto add = [&](typename S::V v, int vector) __attribute__((always_inline)) {
    const typename S::V magnitude = S::abs(v);
    const typename S::Mask active = S::greater(magnitude, level);
    count = S::count_where(active, count);
    const typename S::V kept = S::keep(active, (magnitude - high) - low);
    if constexpr (sizeof(T) == sizeof(double)) {
      two_sum(sums[vector % accumulators], errors[vector % accumulators], kept);
    } else {
      typename D::V first, second;
      widen(kept, first, second);
      two_sum(sums[2 * vector % accumulators], errors[2 * vector % accumulators], first);
      two_sum(sums[(2 * vector + 1) % accumulators], errors[(2 * vector + 1) % accumulators], second);
    }
  };
  for_each_sixteen(w, n, add);
  double sum[streams], error[streams];
  for (int j = 0; j < accumulators; ++j) {
    D::store(sum + j * D::lanes, sums[j]);
    D::store(error + j * D::lanes, errors[j]);
  }
  for (int j = 1; j < streams; ++j) {
    two_sum(sum[0], error[0], sum[j]);
    error[0] += error[j];
  }
  return {sum[0], error[0], count_lanes<T>(count)};
}

}  // namespace lipvae::LIPVAE_ISA
