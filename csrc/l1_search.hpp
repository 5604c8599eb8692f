// The search for a row's threshold tau, the root of f(tau) = sum_i max(|w_i| - tau, 0) = radius.
//
// f is convex and piecewise linear, so Newton's step from any tau with f'(tau) < 0 lands at or below
// the root. Steps in the row's own precision find the active set A = {|w| > tau}; the threshold is
// then (sum_A |w| - radius) / |A| in double, a function of A alone: where the search started does
// not show in the result.
#pragma once

#include "l1_row.hpp"

namespace lipvae::LIPVAE_ISA {

template <class T>
struct RowProblem {
  const T* w;
  std::int64_t n;
  double radius;
};

struct Candidate {
  double tau;
  std::int64_t count;  // elements of the active set that tau was computed from
  bool final;          // the active set at tau is known to be the same
};

// log2 and exp2 to within 1%: they steer the search and touch no result.
LIPVAE_INLINE float rough_log2(float x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const float mantissa = float(bits & 0x7fffff) * 0x1p-23f;
  return float((bits >> 23) - 127) + mantissa * (1.3431f - 0.3431f * mantissa);
}
LIPVAE_INLINE float rough_exp2(float x) {
  if (!(x > -100.0f)) return 0.0f;
  if (x > 100.0f) x = 100.0f;
  const int whole = int(x + 128.0f) - 128;
  const float part = x - float(whole);
  const std::int32_t bits = (whole + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power * (1.0f + part * (0.6569f + 0.3431f * part));
}

// Newton's step on f^p - radius^p from t, where f has the slope -count. It is exact where the
// density of |w| falls off as a box (p = 1/2), an exponential (p = 0) or a power (p < 0).
template <class T>
LIPVAE_INLINE T curved_step(T t, Excess<T> f, T radius, float p) {
  const float decay = rough_log2(float(f.sum / radius));
  const float scale = p > -0.05f && p < 0.05f ? 0.6931f * decay : (1.0f - rough_exp2(-p * decay)) / p;
  return t + f.sum / T(f.count) * T(scale);
}

// The p for which f^p is a straight line between two points.
template <class T>
LIPVAE_INLINE float fitted_curve(Excess<T> f, Excess<T> g, float otherwise) {
  if (f.count == g.count || !(f.sum > T(0)) || !(g.sum > T(0)) || f.sum == g.sum) return otherwise;
  const float p = 1.0f - rough_log2(float(f.count) / float(g.count)) / rough_log2(float(f.sum / g.sum));
  return p > 0.9f ? 0.9f : p > -4.0f ? p : -4.0f;
}

// A guess of tau whose active set is the right one but for a few elements. f is known at t.
template <class T>
double find_active_set(const T* w, std::int64_t n, T radius, T t, Excess<T> f, float p, T floor,
                       bool fitted = false) {
  for (int step = 0; step < 32; ++step) {
    const T newton = t + (f.sum - radius) / T(f.count);
    const float gap = float((f.sum - radius) / f.sum);
    // Elements that Newton's step is off by, from the density that f^p implies.
    const float moved = (1.0f - p) * gap;
    if (moved * moved * float(f.count) < 0.25f) return double(newton);
    if (fitted && moved * moved * __builtin_fabsf(moved) * float(f.count) < 0.2f)
      return double(curved_step(t, f, radius, p));
    if (newton > floor) floor = newton;
    T next = step < 8 && (gap > 0.03f || gap < -0.03f) ? curved_step(t, f, radius, p) : newton;
    if (!(next > floor)) next = floor;
    if (next == t) break;
    Excess<T> g = row_excess(w, n, next);
    if (g.count == 0) {
      if (next == floor) break;
      next = floor;
      g = row_excess(w, n, next);
      if (g.count == 0) break;
    }
    p = fitted_curve(f, g, p);
    fitted = true;
    t = next;
    f = g;
  }
  return double(floor);
}

// tau from the active set at the guess; final if the set at tau is the same, which the caller checks.
template <class T>
Candidate polish(const RowProblem<T>& row, double guess) {
  T t = round_down(guess, T());
  ActiveSum a = row_active_sum(row.w, row.n, t);
  if ((a.count == 0 || a.sum <= row.radius) && t > T(0)) {
    t = T(0);
    a = row_active_sum(row.w, row.n, t);
  }
  if (a.sum <= row.radius) return {0.0, 0, true};
  const double tau = (a.sum - row.radius) / double(a.count);
  return {tau, a.count, round_down(tau, T()) == t};
}

// Rows of this length have their large elements listed, and later passes read the list.
constexpr std::int64_t min_listed = 64, max_listed = 8192;

// Start without a guess, for a row outside the ball.
template <class T>
Candidate search_cold(const RowProblem<T>& row, Norms<T> norms) {
  const T radius = T(row.radius), length = T(row.n);
  const T newton = (norms.sum - radius) / length;
  // max |w| - radius is a lower bound too, and the better one where radius << max |w|.
  const T floor = norms.max - radius > newton ? norms.max - radius : newton;
  const Excess<T> start{norms.sum, row.n};
  if constexpr (sizeof(T) == 4) {
    if (row.n >= min_listed && row.n <= max_listed) {
      float list[max_listed + 16];
      // Short of the root if |w| falls off no faster than a box.
      const T box = T(1.8) * (norms.sum - __builtin_sqrtf(norms.sum * radius)) / length;
      const T t = box > floor ? box : floor;
      const Excess<T> f = row_compact(row.w, row.n, t, list);
      if (f.sum > radius) {
        const float p = fitted_curve(start, f, 0.5f);
        const double guess = find_active_set(list, f.count, radius, t, f, p, t);
        const T level = round_down(guess, T());
        const ActiveSum a = row_active_sum(list, f.count, level);
        // Elements above the level are multiples of its last digit, so this sum is exact, and the
        // order of the list does not matter.
        if (level >= t && a.sum > row.radius && a.sum < 0x1p28 * double(level)) {
          const double tau = (a.sum - row.radius) / double(a.count);
          return {tau, a.count, round_down(tau, T()) == level};
        }
        return polish(row, guess);
      }
      if (f.count > 0) return polish(row, find_active_set(row.w, row.n, radius, t, f, 0.5f, floor));
    }
  }
  if (floor > newton) {
    const Excess<T> f = row_excess(row.w, row.n, floor);
    if (f.count > 0) return polish(row, find_active_set(row.w, row.n, radius, floor, f, 0.5f, floor));
  }
  return polish(row, find_active_set(row.w, row.n, radius, T(0), start, 0.5f, newton));
}

// True if the norms say which candidate it is: 0 for a row inside the ball, NaN for one whose norm is
// not finite. Sums near the radius, and those that overflow, are found again in double.
template <class T>
bool decided_by_norms(const RowProblem<T>& row, Norms<T> norms, Candidate& c) {
  const T radius = T(row.radius), infinity = T(__builtin_inf());
  constexpr T unsure = sizeof(T) == 4 ? T(1e-4) : T(1e-10);
  if (norms.sum < radius * (T(1) - unsure)) {
    c = {0.0, 0, true};
    return true;
  }
  if (norms.sum < infinity && norms.sum >= radius * (T(1) + unsure)) return false;
  // A NaN is active at no level, so it shows only in the norm.
  const bool finite = norms.sum < infinity ||
                      (norms.sum == norms.sum && row_active_sum(row.w, row.n, T(0)).sum < __builtin_inf());
  c = finite ? polish(row, 0.0) : Candidate{__builtin_nan(""), 0, true};
  return true;
}

// The first candidate for the row's threshold: 0 for a row inside the ball, NaN for one whose norm
// is not finite. warm is a guess of tau, used if it is a positive number.
template <class T>
Candidate first_candidate(const RowProblem<T>& row, double warm) {
  const T radius = T(row.radius), infinity = T(__builtin_inf());
  if (warm > 0.0 && warm < 1e300) {
    // The row's norm need not be known: polish() finds out that it is above the radius, or computes it.
    const T t = T(warm);
    const Excess<T> f = row_excess(row.w, row.n, t);
    if (f.count > 0 && f.sum < infinity && t + (f.sum - radius) / T(f.count) > T(0))
      return polish(row, find_active_set(row.w, row.n, radius, t, f, 0.5f, T(0)));
  }
  const Norms<T> norms = row_norms(row.w, row.n);
  Candidate c;
  return decided_by_norms(row, norms, c) ? c : search_cold(row, norms);
}

}  // namespace lipvae::LIPVAE_ISA
