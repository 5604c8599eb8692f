// Steps towards the threshold of a row, the root of f(t) = sum_i max(|w_i| - t, 0) = radius.
//
// f is convex and piecewise linear. A step takes f^p for a straight line, which is exact where the
// density of |w| falls off as a box (p = 1/2), an exponential (p = 0) or a power (p < 0). Steps are in
// the row's own precision: they look for the active set and touch no result.
#pragma once

#include "l1_row.hpp"

namespace lipvae::LIPVAE_ISA {

template <class T>
struct RowProblem {
  const T* w;
  std::int64_t n;
  double radius;
};

// log2 and exp2 to within 1%.
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

// The step from t, where f has the slope -count, to the root.
template <class T>
LIPVAE_INLINE T curved_step(T t, Excess<T> f, T radius, float p) {
  const float decay = rough_log2(float(f.sum / radius));
  const float scale = p > -0.05f && p < 0.05f ? 0.6931f * decay : (1.0f - rough_exp2(-p * decay)) / p;
  return t + f.sum / T(f.count) * T(scale);
}

// The same near the root, by series: to within 1e-3 of its length where f is within a half of radius.
template <class T>
LIPVAE_INLINE T short_step(T t, Excess<T> f, T radius, float p) {
  const float z = float((f.sum - radius) / (f.sum + radius)), square = z * z;
  const float decay = 2.0f * z * (1.0f + square * (0.3333f + 0.2f * square));  // log(f / radius)
  const float u = p * decay;
  return t + f.sum / T(f.count) * T(decay / (1.0f + u * (0.5f + 0.0833f * u)));
}

// The p for which f^p is a straight line between two points.
template <class T>
LIPVAE_INLINE float fitted_curve(Excess<T> f, Excess<T> g, float otherwise) {
  if (f.count == g.count || !(f.sum > T(0)) || !(g.sum > T(0)) || f.sum == g.sum) return otherwise;
  const float p = 1.0f - rough_log2(float(f.count) / float(g.count)) / rough_log2(float(f.sum / g.sum));
  return p > 0.9f ? 0.9f : p > -4.0f ? p : -4.0f;
}

// The search for one row's active set. f is known at t, and the root is known to be at least `floor`.
template <class T>
struct Search {
  const T* w;
  std::int64_t n;
  T radius, t, floor;
  Excess<T> f;
  float p = 0.5f;
  bool fitted = false;  // p was seen and not assumed
  double guess = 0.0;   // of the threshold, once found

  // Whether the next step finds the active set, very likely.
  LIPVAE_INLINE bool last_step() {
    const float gap = float((f.sum - radius) / f.sum), size = gap < 0.0f ? -gap : gap;
    // Elements between t and the root, and by how many the step misses: p is not quite right, and
    // elements lie at random.
    const float between = (1.0f - p) * size * float(f.count);
    const float by_curve = (fitted ? 0.05f : 0.25f) * size;
    const float by_chance = 0.5f * __builtin_sqrtf(between) / float(f.count);
    // Each is a coin toss, and so are both, but that is one branch.
    if (!(int(size < 0.5f) & int(between * (by_curve + by_chance) < 0.3f))) return false;
    const T to = short_step(t, f, radius, p);
    guess = double(to > floor ? to : floor);
    return true;
  }
  LIPVAE_INLINE T next(int step) {
    const T newton = t + (f.sum - radius) / T(f.count);
    const float gap = float((f.sum - radius) / f.sum);
    // Newton's step from any t with f'(t) < 0 lands at or below the root.
    if (newton > floor) floor = newton;
    const T to = step < 8 && (gap > 0.03f || gap < -0.03f) ? curved_step(t, f, radius, p) : newton;
    return to > floor ? to : floor;
  }
  // f as known at another point, first with a curve and then with one to fit.
  LIPVAE_INLINE void start(T from, Excess<T> g, float curve) {
    p = curve;
    fitted = true;
    t = from;
    f = g;
  }
  LIPVAE_INLINE void move(T to, Excess<T> g) {
    p = fitted_curve(f, g, p);
    fitted = true;
    t = to;
    f = g;
  }
};

constexpr int max_rows_at_once = 8;

// Guesses whose active sets are the right ones but for a few elements. Each step goes through all rows
// before the next one begins: the sum over lanes and the divisions that end a pass over one row, a chain
// of some 60 cycles, then run beside the pass over the next row.
template <class T, class Fetch>
void find_active_sets(Search<T>** open, int rows, Fetch& fetch) {
  for (int step = 0; step < 32 && rows > 0; ++step) {
    T to[max_rows_at_once];
    Excess<T> g[max_rows_at_once];
    int left = 0;
    for (int i = 0; i < rows; ++i) {
      Search<T>& row = *open[i];
      if (row.last_step()) continue;
      const T next = row.next(step);
      row.guess = double(row.floor);
      if (next == row.t) continue;
      to[left] = next;
      open[left++] = &row;
    }
    rows = left;
    for (int i = 0; i < rows; ++i) g[i] = row_excess(open[i]->w, open[i]->n, to[i], fetch);
    left = 0;
    for (int i = 0; i < rows; ++i) {
      Search<T>& row = *open[i];
      if (g[i].count == 0) {
        if (to[i] == row.floor) continue;
        to[i] = row.floor;
        g[i] = row_excess(row.w, row.n, to[i], fetch);
        if (g[i].count == 0) continue;
      }
      row.move(to[i], g[i]);
      open[left++] = &row;
    }
    rows = left;
  }
}

}  // namespace lipvae::LIPVAE_ISA
