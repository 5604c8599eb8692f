// The search for the thresholds of several rows at once. Each step goes through all rows before the
// next step begins: the sum over lanes and the division that end a pass over one row, a chain of some
// 60 cycles, then run beside the pass over the next row.
#pragma once

#include "l1_search.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr int max_rows_at_once = 8;

// Where the rows of a matrix have their thresholds, learnt from the rows before: one number that makes
// the start exact for all rows whose magnitudes are distributed alike but for scale and radius.
class TypicalRow {
 public:
  // For a row outside the ball. Newton's step from 0 is the bound, and exact at the ball's boundary.
  template <class T>
  LIPVAE_INLINE T start(const RowProblem<T>& row, Norms<T> norms) const {
    const T newton = (norms.sum - T(row.radius)) / T(row.n);
    const T t = newton + T(beyond_) * curvature(row, norms);
    const T floor = norms.max - T(row.radius);
    return t > floor ? t : floor;
  }
  template <class T>
  LIPVAE_INLINE void learn(const RowProblem<T>& row, Norms<T> norms, double tau) {
    if (!(norms.sum > T(1.05) * T(row.radius)) || !(tau > 0.0)) return;
    const T newton = (norms.sum - T(row.radius)) / T(row.n);
    const float beyond = float((T(tau) - newton) / curvature(row, norms));
    if (beyond > 0.0f && beyond < 100.0f) beyond_ += (seen_ ? 0.25f : 1.0f) * (beyond - beyond_);
    seen_ = true;
  }

 private:
  // What a box's threshold is above Newton's step.
  template <class T>
  static LIPVAE_INLINE T curvature(const RowProblem<T>& row, Norms<T> norms) {
    const T root = T(__builtin_sqrt(norms.sum)) - T(__builtin_sqrt(row.radius));
    return root * root / T(row.n);
  }
  float beyond_ = 0.8f;
  bool seen_ = false;
};

// first_candidate of each row.
template <class T>
void first_candidates(const RowProblem<T>* row, int rows, const double* warm, TypicalRow& typical,
                      Candidate* c) {
  const T radius = T(row[0].radius), infinity = T(__builtin_inf());
  const std::int64_t n = row[0].n;
  Norms<T> norms[max_rows_at_once];
  T t[max_rows_at_once];
  Excess<T> f[max_rows_at_once];
  double guess[max_rows_at_once];
  int open[max_rows_at_once];  // rows that their norms do not decide
  bool cold[max_rows_at_once];
  int left = 0;
  for (int r = 0; r < rows; ++r) {
    cold[r] = !(warm && warm[r] > 0.0 && warm[r] < 1e300);
    if (cold[r]) norms[r] = row_norms(row[r].w, n);
  }
  for (int r = 0; r < rows; ++r) {
    if (cold[r] && decided_by_norms(row[r], norms[r], c[r])) continue;
    t[r] = cold[r] ? typical.start(row[r], norms[r]) : T(warm[r]);
    open[left++] = r;
  }
  for (int i = 0; i < left; ++i) f[open[i]] = row_excess(row[open[i]].w, n, t[open[i]]);
  int kept = 0;
  for (int i = 0; i < left; ++i) {
    const int r = open[i];
    const bool usable = f[r].count > 0 && f[r].sum < infinity && t[r] + (f[r].sum - radius) / T(f[r].count) > T(0);
    if (!usable) {
      c[r] = cold[r] ? search_cold(row[r], norms[r]) : first_candidate(row[r], 0.0);
      continue;
    }
    const float p = cold[r] ? fitted_curve(Excess<T>{norms[r].sum, n}, f[r], 0.5f) : 0.5f;
    guess[r] = find_active_set(row[r].w, n, radius, t[r], f[r], p, T(0), cold[r]);
    open[kept++] = r;
  }
  for (int i = 0; i < kept; ++i) c[open[i]] = polish(row[open[i]], guess[open[i]]);
  for (int r = 0; r < rows; ++r) if (cold[r]) typical.learn(row[r], norms[r], c[r].tau);
}

}  // namespace lipvae::LIPVAE_ISA
