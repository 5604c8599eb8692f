// The search for the thresholds of rows.
//
// Steps find the active set A = {|w| > tau}; the threshold is then (sum_A |w| - radius) / |A| in double,
// a function of A alone: where the search started does not show in the result.
#pragma once

#include "l1_steps.hpp"

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

// Where rows of one matrix have their thresholds, learnt from the rows before. It changes the time that
// the search takes and not its result.
class TypicalRow {
 public:
  // A start for a row outside the ball.
  template <class T>
  LIPVAE_INLINE T start(const RowProblem<T>& row, Norms<T> norms) const {
    return error_of_tau_ < error_of_norm_ ? T(tau_) : from_norm(row, norms);
  }
  template <class T>
  LIPVAE_INLINE void learn(const RowProblem<T>& row, Norms<T> norms, double tau) {
    if (!(norms.sum > T(1.05) * T(row.radius)) || !(tau > 0.0 && tau < 1e30)) return;
    const float rate = seen_ ? 0.2f : 1.0f, found = float(tau);
    const float newton = float(norms.sum - T(row.radius)) / float(row.n);
    const float beyond = (found - newton) / float(box_beyond_newton(row, norms));
    auto miss = [&](float t) { return t > found ? (t - found) / found : (found - t) / found; };
    if (seen_) {
      error_of_norm_ += rate * (miss(float(from_norm(row, norms))) - error_of_norm_);
      error_of_tau_ += rate * (miss(tau_) - error_of_tau_);
    }
    tau_ += rate * (found - tau_);
    if (beyond > 0.0f && beyond < 1e3f) beyond_ += rate * (beyond - beyond_);
    seen_ = true;
  }

 private:
  // Newton's step from 0 is a lower bound, and exact at the ball's boundary. What lies beyond it is in
  // proportion for rows whose magnitudes are distributed alike but for scale.
  template <class T>
  LIPVAE_INLINE T from_norm(const RowProblem<T>& row, Norms<T> norms) const {
    return (norms.sum - T(row.radius)) / T(row.n) + T(beyond_) * box_beyond_newton(row, norms);
  }
  template <class T>
  static LIPVAE_INLINE T box_beyond_newton(const RowProblem<T>& row, Norms<T> norms) {
    const T root = T(__builtin_sqrt(norms.sum)) - T(__builtin_sqrt(row.radius));
    return root * root / T(row.n);
  }

  float beyond_ = 0.8f, tau_ = 0.0f;
  float error_of_norm_ = 0.0f, error_of_tau_ = 0.0f;  // relative
  bool seen_ = false;
};

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

// The first candidate for each row's threshold: 0 for a row inside the ball, NaN for one whose norm is
// not finite. warm, or null, holds guesses of tau. At most max_rows_at_once rows.
template <class T>
void first_candidates(const RowProblem<T>* row, int rows, const double* warm, TypicalRow& typical,
                      Candidate* c) {
  const T infinity = T(__builtin_inf());
  Norms<T> norms[max_rows_at_once];
  Search<T> search[max_rows_at_once];
  int cold[max_rows_at_once], open[max_rows_at_once], colds = 0, opens = 0;
  for (int r = 0; r < rows; ++r) {
    search[r] = {row[r].w, row[r].n, T(row[r].radius), T(0), T(0), {}};
    // Rows at the boundary need their norm.
    if (warm && warm[r] * double(row[r].n) > 0.02 * row[r].radius && warm[r] < 1e300) {
      search[r].t = T(warm[r]);
      search[r].f = row_excess(row[r].w, row[r].n, search[r].t);
      open[opens++] = r;
    } else {
      cold[colds++] = r;
    }
  }
  int kept = 0;
  for (int i = 0; i < opens; ++i) {
    const Search<T>& s = search[open[i]];
    // The row's norm need not be known: polish() finds out that it is above the radius, or computes it.
    const bool usable = s.f.count > 0 && s.f.sum < infinity && s.t + (s.f.sum - s.radius) / T(s.f.count) > T(0);
    (usable ? open[kept++] : cold[colds++]) = open[i];
  }
  opens = kept;
  for (int i = 0; i < colds; ++i) norms[cold[i]] = row_norms(row[cold[i]].w, row[cold[i]].n);
  int starts[max_rows_at_once], begun = 0;
  Search<T>* polished[max_rows_at_once], *searched[max_rows_at_once];
  int all = 0, searches = 0;
  for (int i = 0; i < opens; ++i) polished[all++] = searched[searches++] = &search[open[i]];
  for (int i = 0; i < colds; ++i) {
    const int r = cold[i];
    if (decided_by_norms(row[r], norms[r], c[r])) continue;
    Search<T>& s = search[r];
    polished[all++] = &s;
    s.t = T(0);
    s.f = {norms[r].sum, row[r].n};
    s.floor = (norms[r].sum - s.radius) / T(s.n);
    if (s.last_step()) continue;
    // max |w| - radius is a lower bound too, and the better one where radius << max |w|.
    if (norms[r].max - s.radius > s.floor) s.floor = norms[r].max - s.radius;
    starts[begun++] = r;
  }
  Excess<T> f[max_rows_at_once];
  T t[max_rows_at_once];
  for (int i = 0; i < begun; ++i) {
    const Search<T>& s = search[starts[i]];
    t[i] = typical.start(row[starts[i]], norms[starts[i]]);
    if (!(t[i] > s.floor)) t[i] = s.floor;
    f[i] = row_excess(s.w, s.n, t[i]);
  }
  for (int i = 0; i < begun; ++i) {
    Search<T>& s = search[starts[i]];
    if (f[i].count > 0) s.move(t[i], f[i]);
    searched[searches++] = &s;
  }
  find_active_sets(searched, searches);
  for (int i = 0; i < all; ++i) {
    const int r = int(polished[i] - search);
    c[r] = polish(row[r], polished[i]->guess);
  }
  for (int i = 0; i < begun; ++i) typical.learn(row[starts[i]], norms[starts[i]], c[starts[i]].tau);
}

template <class T>
Candidate first_candidate(const RowProblem<T>& row, double warm) {
  TypicalRow typical;
  Candidate c;
  first_candidates(&row, 1, &warm, typical, &c);
  return c;
}

}  // namespace lipvae::LIPVAE_ISA
