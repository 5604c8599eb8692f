// The search for the thresholds of rows.
//
// Steps find the active set A = {|w| > tau}; the threshold is then (sum_A |w| - radius) / |A| in double,
// a function of A alone: where the search started does not show in the result.
#pragma once

#include <limits>

#include "l1_steps.hpp"
#include "l1_tops.hpp"
#include "l1_typical.hpp"

namespace lipvae::LIPVAE_ISA {

struct Candidate {
  double tau;
  std::int64_t count;  // elements of the active set that tau was computed from
  bool final;          // the active set at tau is known to be the same
};

// The sum over |w| > t, for a row whose threshold is sought. The faster sum is exact where it can be had,
// and then the other one is too.
LIPVAE_INLINE ActiveSum active_sum(const double* w, std::int64_t n, double t, double) {
  return row_active_sum(w, n, t);
}
LIPVAE_INLINE ActiveSum active_sum(const float* w, std::int64_t n, float t, double radius) {
  if (radius < split_limit * double(t)) {  // the sum is above the radius
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

// True if the norm says which candidate it is: 0 for a row inside the ball, NaN for one whose norm is
// not finite. Sums near the radius, and those that overflow, are found again in double.
template <class T>
bool decided_by_norm(const RowProblem<T>& row, T norm, Candidate& c) {
  const T radius = T(row.radius), infinity = T(__builtin_inf());
  constexpr T unsure = sizeof(T) == 4 ? T(1e-4) : T(1e-10);
  if (norm < radius * (T(1) - unsure)) {
    c = {0.0, 0, true};
    return true;
  }
  if (norm < infinity && norm >= radius * (T(1) + unsure)) return false;
  // A NaN is active at no level, so it shows only in the norm.
  const bool finite =
      norm < infinity || (norm == norm && row_active_sum(row.w, row.n, T(0)).sum < __builtin_inf());
  c = finite ? polish(row, 0.0) : Candidate{__builtin_nan(""), 0, true};
  return true;
}

// The first candidates for the thresholds of at most max_rows_at_once rows of equal length, side by side
// in memory.
template <class T, class Fetch>
class RowBlock {
 public:
  RowBlock(const RowProblem<T>* row, int rows, TypicalRow& typical, Fetch& fetch)
      : row_(row), rows_(rows), typical_(typical), fetch_(fetch) {
    for (int r = 0; r < rows; ++r) search_[r] = {row[r].w, row[r].n, T(row[r].radius), T(0), T(0), {}};
  }

  // 0 for a row inside the ball, NaN for one whose norm is not finite. warm, or null, holds guesses of
  // the thresholds.
  void first_candidates(const double* warm, Candidate* c) {
    if (!warm && typical_.few(row_[0].n))
      search_tops();
    else
      sort_out(warm);
    start_warm(warm != nullptr);
    start_cold(c);
    find_active_sets(open_, opens_, fetch_);
    sum_active_sets(c);
    if (outside_ > 0) {
      const int r = outside_row_[0];
      if (begun_ == 0 && !in_tops_[r]) typical_.learn_curve(row_[r], search_[r].f, c[r].count);
      typical_.learn_threshold(row_[r], c[r].tau, c[r].count);
    }
    // Learning takes as long as a step, so once enough is known a row of the block has to do.
    const int taught = typical_.knows_enough() && begun_ > 1 ? 1 : begun_;
    for (int i = 0; i < taught; ++i) {
      const int r = begun_row_[i];
      typical_.learn(row_[r], norms_[r], c[r].tau, c[r].count);
    }
  }

 private:
  // As many of Newton's steps as nearly all rows need, so that no branch depends on a row. Rows whose tops are not
  // all that is above the threshold found there go on from it, which is a lower bound.
  void search_tops() {
    constexpr int steps = 4;
    T most[max_rows_at_once], floor[max_rows_at_once], t[max_rows_at_once];
    Excess<T> f[max_rows_at_once];
    for (int r = 0; r < rows_; ++r) {
      row_tops(row_[r].w, row_[r].n, tops_[r], fetch_);
      fetch_.half(r, 0);
    }
    for (int r = 0; r < rows_; ++r) {
      const T guess = T(typical_.low_threshold());
      most[r] = largest(tops_[r], 0);
      // A little less than the bound, or if it rounds to max |w| there is nothing above it.
      const T bound = (most[r] - T(row_[r].radius)) * (T(1) - std::numeric_limits<T>::epsilon());
      floor[r] = bound > T(0) ? bound : T(0);
      t[r] = guess > floor[r] && guess < most[r] ? guess : floor[r];
    }
    for (int step = 0; step < steps; ++step) {
      for (int r = 0; r < rows_; ++r) f[r] = tops_excess(tops_[r], t[r]);
      for (int r = 0; r < rows_; ++r) {
        const T to = t[r] + (f[r].sum - T(row_[r].radius)) / T(f[r].count);
        t[r] = to > floor[r] ? to : floor[r];
      }
    }
    for (int r = 0; r < rows_; ++r) {
      guess_[r] = double(t[r]);
      if (most[r] < T(__builtin_inf()) && largest(tops_[r], Tops<T>::ranks - 1) <= t[r]) {
        in_tops_[r] = true;
        search_[r].guess = guess_[r];
        outside_row_[outside_++] = r;
      } else {
        (guess_[r] > 0.0 && guess_[r] < 1e300 ? warm_row_[warms_++] : cold_row_[colds_++]) = r;
      }
    }
  }

  // Rows with a guess worth a try, given or by the rows before, and the others. Rows near the ball's boundary need
  // their norm.
  void sort_out(const double* warm) {
    for (int r = 0; r < rows_; ++r) {
      guess_[r] = warm ? warm[r] : double(typical_.threshold());
      const bool guessed = typical_.trusts_guesses() && guess_[r] < 1e300 &&
                           guess_[r] * double(row_[r].n) > 0.02 * row_[r].radius;
      (guessed ? warm_row_[warms_++] : cold_row_[colds_++]) = r;
    }
  }

  void start_warm(bool given) {
    for (int i = 0; i < warms_; ++i) {
      const int r = warm_row_[i];
      Search<T>& s = search_[r];
      s.t = T(guess_[r]);
      s.f = row_excess(s.w, s.n, s.t, fetch_);
      fetch_.half(r, 0);
    }
    for (int i = 0; i < warms_; ++i) {
      const int r = warm_row_[i];
      Search<T>& s = search_[r];
      // The norm need not be known: candidate() finds out that it is above the radius, or computes it.
      const bool useful = s.f.count > 0 && s.f.sum < T(__builtin_inf()) &&
                          s.t + (s.f.sum - s.radius) / T(s.f.count) > T(0);
      // Far below the root one by other rows costs as many steps as it saves.
      const bool near = given || s.f.sum < T(3) * s.radius;
      typical_.learn_of_guess(useful && near);
      if (useful) {
        s.p = typical_.curve();
        s.fitted = typical_.knows_curve();
        outside_row_[outside_++] = r;
        open_[opens_++] = &s;
      } else {
        cold_row_[colds_++] = r;
      }
    }
  }

  void start_cold(Candidate* c) {
    for (int i = 0; i < colds_; ++i) {
      const int r = cold_row_[i];
      norms_[r] = row_norm(row_[r].w, row_[r].n, fetch_);
      fetch_.half(r, 0);
    }
    for (int i = 0; i < colds_; ++i) {
      const int r = cold_row_[i];
      if (decided_by_norm(row_[r], norms_[r], c[r])) continue;
      outside_row_[outside_++] = r;
      Search<T>& s = search_[r];
      s.t = T(0);
      s.f = {norms_[r], s.n};
      s.floor = (norms_[r] - s.radius) / T(s.n);
      if (norms_[r] < T(1.5) * s.radius && s.last_step()) continue;
      begun_row_[begun_++] = r;
    }
    T t[max_rows_at_once];
    Excess<T> f[max_rows_at_once];
    for (int i = 0; i < begun_; ++i) {
      const int r = begun_row_[i];
      const Search<T>& s = search_[r];
      t[i] = typical_.start(row_[r], norms_[r]);
      if (!(t[i] > s.floor)) t[i] = s.floor;
      f[i] = row_excess(s.w, s.n, t[i], fetch_);
    }
    for (int i = 0; i < begun_; ++i) {
      Search<T>& s = search_[begun_row_[i]];
      open_[opens_++] = &s;
      if (f[i].count > 0) s.start(t[i], f[i], typical_.curve());  // or on from 0
    }
  }

  void sum_active_sets(Candidate* c) {
    T level[max_rows_at_once];
    ActiveSum sum[max_rows_at_once];
    for (int i = 0; i < outside_; ++i) level[i] = round_down(search_[outside_row_[i]].guess, T());
    for (int i = 0; i < outside_; ++i) {
      const int r = outside_row_[i];
      if (!(in_tops_[r] && sum_of_tops(r, level[i], sum[i])))
        sum[i] = active_sum(row_[r].w, row_[r].n, level[i], row_[r].radius);
      fetch_.half(r, 1);
    }
    for (int i = 0; i < outside_; ++i) {
      const int r = outside_row_[i];
      c[r] = candidate(row_[r], level[i], sum[i]);
    }
  }

  // The sum over the row by its tops; false if it has to be found from the row. Floats above the level are multiples of
  // its last digit, so up to a limit their sum is exact, and its order does not matter.
  LIPVAE_INLINE bool sum_of_tops(int r, T level, ActiveSum& sum) const {
    if constexpr (sizeof(T) == 4) {
      sum = tops_active_sum(tops_[r], level);
      return sum.sum > row_[r].radius && sum.sum < 0x1p28 * double(level);
    }
    return false;
  }

  const RowProblem<T>* row_;
  int rows_;
  TypicalRow& typical_;
  Fetch& fetch_;
  Search<T> search_[max_rows_at_once];
  Tops<T> tops_[max_rows_at_once];
  bool in_tops_[max_rows_at_once] = {};  // that its threshold was found there
  T norms_[max_rows_at_once];
  int warm_row_[max_rows_at_once], cold_row_[max_rows_at_once];
  int begun_row_[max_rows_at_once], outside_row_[max_rows_at_once];
  int warms_ = 0, colds_ = 0, begun_ = 0, outside_ = 0, opens_ = 0;
  Search<T>* open_[max_rows_at_once];
  double guess_[max_rows_at_once];
};

}  // namespace lipvae::LIPVAE_ISA
