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

// Where rows of one matrix have their thresholds, learnt from the rows before. It changes the time that
// the search takes and not its result.
class TypicalRow {
 public:
  // Whether few elements are active, and which ones is a matter of the row.
  bool sparse() const { return share_ < 0.25f; }
  // Whether guesses of the threshold have helped.
  bool trusts_guesses() const { return useless_ < 0.5f; }
  // The p for which f^p is a straight line.
  float curve() const { return curve_; }
  bool knows_curve() const { return seen_ > 0 || curves_ > 3; }

  bool knows_enough() const { return seen_ >= 16; }

  // A start for a row outside the ball: Newton's step from 0, which is a lower bound and exact at the
  // ball's boundary, and beyond it in proportion to what a box has there. That is right for rows whose
  // magnitudes are distributed alike but for scale.
  template <class T>
  LIPVAE_INLINE T start(const RowProblem<T>& row, Norms<T> norms) const {
    const T beyond = T(sparse() ? least_ : mean_);
    return (norms.sum - T(row.radius)) / T(row.n) + beyond * box_beyond_newton(row, norms);
  }
  template <class T>
  LIPVAE_INLINE void learn(const RowProblem<T>& row, Norms<T> norms, const Candidate& found) {
    if (!(norms.sum > T(1.05) * T(row.radius)) || found.count == 0) return;
    const T newton = (norms.sum - T(row.radius)) / T(row.n);
    const float beyond = float((T(found.tau) - newton) / box_beyond_newton(row, norms));
    if (!(beyond > 0.0f && beyond < 1e3f)) return;
    ++seen_;
    const float rate = seen_ < 20 ? 1.0f / float(seen_) : 0.05f;
    mean_ += rate * (beyond - mean_);
    least_ = beyond < least_ ? beyond : least_ + 0.2f * rate * (beyond - least_);
    curve_ += rate * (fitted_curve(Excess<T>{norms.sum, row.n}, Excess<T>{T(row.radius), found.count}, 0.5f) - curve_);
    share_ += rate * (float(found.count) / float(row.n) - share_);
  }
  // From a row with f at t, near the root.
  template <class T>
  LIPVAE_INLINE void learn_curve(const RowProblem<T>& row, Excess<T> f, const Candidate& found) {
    const float gap = float(f.sum / T(row.radius)) - 1.0f;
    if (gap < 0.01f && gap > -0.01f) return;
    ++curves_;
    curve_ += 0.1f * (fitted_curve(f, Excess<T>{T(row.radius), found.count}, curve_) - curve_);
  }
  void learn_of_guess(bool useful) { useless_ += 0.2f * (float(!useful) - useless_); }

 private:
  template <class T>
  static LIPVAE_INLINE T box_beyond_newton(const RowProblem<T>& row, Norms<T> norms) {
    const T root = T(__builtin_sqrt(norms.sum)) - T(__builtin_sqrt(row.radius));
    return root * root / T(row.n);
  }

  float mean_ = 0.8f, least_ = 0.8f, share_ = 0.0f, useless_ = 0.0f, curve_ = 0.5f;
  int seen_ = 0;  // rows learnt from
  int curves_ = 0;
};

LIPVAE_INLINE ActiveSum active_sum(const double* w, std::int64_t n, double t, double) {
  return row_active_sum(w, n, t);
}
LIPVAE_INLINE ActiveSum active_sum(const float* w, std::int64_t n, float t, double radius) {
  // The sum of interest is above the radius.
  if (radius < split_limit * double(t)) {
    const SplitSum a = row_split_sum(w, n, t);
    if (a.exact) return {double(a.upper) + double(a.lower), a.count};
  }
  return row_active_sum(w, n, t);
}

// tau from the active set at t; final if the set at tau is the same, which the caller checks.
template <class T>
LIPVAE_INLINE Candidate candidate(const RowProblem<T>& row, T t, ActiveSum a) {
  if ((a.count == 0 || a.sum <= row.radius) && t > T(0)) {
    t = T(0);
    a = row_active_sum(row.w, row.n, t);
  }
  if (a.sum <= row.radius) return {0.0, 0, true};
  const double tau = (a.sum - row.radius) / double(a.count);
  return {tau, a.count, round_down(tau, T()) == t};
}
template <class T>
Candidate polish(const RowProblem<T>& row, double guess) {
  const T t = round_down(guess, T());
  return candidate(row, t, active_sum(row.w, row.n, t, row.radius));
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

// Rows of at least this length may have their large elements listed, and later passes read the list.
constexpr std::int64_t min_listed = 64, max_listed = 8192;

// The first candidates for the thresholds of at most max_rows_at_once rows of equal length.
template <class T>
class RowBlock {
 public:
  RowBlock(const RowProblem<T>* row, int rows, TypicalRow& typical) : row_(row), rows_(rows), typical_(typical) {}

  // 0 for a row inside the ball, NaN for one whose norm is not finite. warm, or null, holds guesses of
  // the thresholds.
  void first_candidates(const double* warm, Candidate* c) {
    for (int r = 0; r < rows_; ++r) {
      search_[r] = {row_[r].w, row_[r].n, T(row_[r].radius), T(0), T(0), {}};
      // Rows near the ball's boundary need their norm.
      const bool guessed = warm && typical_.trusts_guesses() && warm[r] < 1e300 &&
                           warm[r] * double(row_[r].n) > 0.02 * row_[r].radius;
      (guessed ? warm_[warms_++] : cold_[colds_++]) = r;
    }
    start_warm(warm);
    start_cold(c);
    find_active_sets(open_, opens_);
    T level[max_rows_at_once];
    ActiveSum sum[max_rows_at_once];
    for (int i = 0; i < polished_; ++i) level[i] = round_down(search_[polish_[i]].guess, T());
    for (int i = 0; i < polished_; ++i) {
      const int r = polish_[i];
      const Search<T>& s = search_[r];
      sum[i] = active_sum(s.w, s.n, level[i], row_[r].radius);
      // Elements above the level are multiples of its last digit, so the sum of a list is exact, and its
      // order does not matter.
      if (s.w != row_[r].w && !(level[i] >= listed_from_[r] && sum[i].sum > row_[r].radius && sum[i].sum < 0x1p28 * double(level[i])))
        sum[i] = active_sum(row_[r].w, row_[r].n, level[i], row_[r].radius);
    }
    for (int i = 0; i < polished_; ++i) c[polish_[i]] = candidate(row_[polish_[i]], level[i], sum[i]);
    if (polished_ > 0 && !begun_) typical_.learn_curve(row_[polish_[0]], search_[polish_[0]].f, c[polish_[0]]);
    // Learning takes as long as a step, so once enough is known a row of the block has to do.
    const int taught = typical_.knows_enough() && begun_ > 1 ? 1 : begun_;
    for (int i = 0; i < taught; ++i) typical_.learn(row_[begin_[i]], norms_[begin_[i]], c[begin_[i]]);
  }

 private:
  void start_warm(const double* warm) {
    for (int i = 0; i < warms_; ++i) {
      Search<T>& s = search_[warm_[i]];
      s.t = T(warm[warm_[i]]);
      s.f = row_excess(s.w, s.n, s.t);
    }
    for (int i = 0; i < warms_; ++i) {
      const int r = warm_[i];
      Search<T>& s = search_[r];
      // The row's norm need not be known: polish() finds out that it is above the radius, or computes it.
      const bool useful = s.f.count > 0 && s.f.sum < T(__builtin_inf()) &&
                          s.t + (s.f.sum - s.radius) / T(s.f.count) > T(0);
      typical_.learn_of_guess(useful);
      if (useful)
        open_[opens_++] = &s, polish_[polished_++] = r, s.p = typical_.curve(), s.fitted = typical_.knows_curve();
      else
        cold_[colds_++] = r;
    }
  }
  void start_cold(Candidate* c) {
    const bool sparse = typical_.sparse();
    for (int i = 0; i < colds_; ++i) {
      const RowProblem<T>& row = row_[cold_[i]];
      norms_[cold_[i]] = sparse ? row_norms(row.w, row.n) : row_norms<false>(row.w, row.n);
    }
    for (int i = 0; i < colds_; ++i) {
      const int r = cold_[i];
      if (decided_by_norms(row_[r], norms_[r], c[r])) continue;
      polish_[polished_++] = r;
      Search<T>& s = search_[r];
      s.t = T(0);
      s.f = {norms_[r].sum, s.n};
      s.floor = (norms_[r].sum - s.radius) / T(s.n);
      if (norms_[r].sum < T(1.5) * s.radius && s.last_step()) continue;
      // max |w| - radius is a lower bound too, and the better one where radius << max |w|.
      if (norms_[r].max - s.radius > s.floor) s.floor = norms_[r].max - s.radius;
      begin_[begun_++] = r;
    }
    T* list = list_;
    T t[max_rows_at_once];
    Excess<T> f[max_rows_at_once];
    for (int i = 0; i < begun_; ++i) {
      const int r = begin_[i];
      Search<T>& s = search_[r];
      t[i] = typical_.start(row_[r], norms_[r]);
      if (!(t[i] > s.floor)) t[i] = s.floor;
      if constexpr (sizeof(T) == 4) {
        if (sparse && s.n >= min_listed && list + s.n <= list_ + max_listed) {
          f[i] = row_compact(s.w, s.n, t[i], list);
          listed_from_[r] = t[i];
          if (f[i].sum > s.radius) {
            s.w = list;
            list += f[i].count;
            s.floor = t[i];
          }
          continue;
        }
      }
      f[i] = row_excess(s.w, s.n, t[i]);
    }
    for (int i = 0; i < begun_; ++i) {
      const int r = begin_[i];
      Search<T>& s = search_[r];
      open_[opens_++] = &s;
      if (f[i].count == 0) continue;
      if (sparse)
        s.move(t[i], f[i]);
      else
        s.start(t[i], f[i], typical_.curve());
      if (s.w != row_[r].w) s.n = f[i].count;
    }
  }

  const RowProblem<T>* row_;
  int rows_;
  TypicalRow& typical_;
  Search<T> search_[max_rows_at_once];
  Norms<T> norms_[max_rows_at_once];
  int warm_[max_rows_at_once], cold_[max_rows_at_once], begin_[max_rows_at_once], polish_[max_rows_at_once];
  int warms_ = 0, colds_ = 0, begun_ = 0, polished_ = 0, opens_ = 0;
  Search<T>* open_[max_rows_at_once];
  T listed_from_[max_rows_at_once];
  T list_[sizeof(T) == 4 ? max_listed + 16 : 1];
};

template <class T>
Candidate first_candidate(const RowProblem<T>& row, double warm) {
  TypicalRow typical;
  Candidate c;
  RowBlock<T>(&row, 1, typical).first_candidates(&warm, &c);
  return c;
}

}  // namespace lipvae::LIPVAE_ISA
