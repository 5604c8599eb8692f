// The search for the thresholds of rows.
//
// Steps find the active set A = {|w| > tau}; the threshold is then (sum_A |w| - radius) / |A| in double,
// a function of A alone: where the search started does not show in the result.
#pragma once

#include "l1_steps.hpp"
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

// Rows of at least this length may have their large elements listed, and later passes read the list.
constexpr std::int64_t min_listed = 64, max_listed = 8192;

// The first candidates for the thresholds of at most max_rows_at_once rows of equal length, side by side
// in memory.
template <class T, class Fetch>
class RowBlock {
 public:
  RowBlock(const RowProblem<T>* row, int rows, TypicalRow& typical, Fetch& fetch)
      : row_(row), rows_(rows), typical_(typical), fetch_(fetch) {}

  // 0 for a row inside the ball, NaN for one whose norm is not finite. warm, or null, holds guesses of
  // the thresholds.
  void first_candidates(const double* warm, Candidate* c) {
    sort_out(warm);
    start_warm(warm != nullptr);
    start_cold(c);
    find_active_sets(open_, opens_, fetch_);
    sum_active_sets(c);
    if (outside_ > 0) {
      const int r = outside_row_[0];
      if (begun_ == 0) typical_.learn_curve(row_[r], search_[r].f, c[r].count);
      typical_.learn_threshold(c[r].tau);
    }
    // Learning takes as long as a step, so once enough is known a row of the block has to do.
    const int taught = typical_.knows_enough() && begun_ > 1 ? 1 : begun_;
    for (int i = 0; i < taught; ++i) {
      const int r = begun_row_[i];
      typical_.learn(row_[r], norms_[r].sum, c[r].tau, c[r].count);
    }
  }

 private:
  // Rows with a guess worth a try, given or by the rows before, and the others. Rows near the ball's boundary need
  // their norm.
  void sort_out(const double* warm) {
    for (int r = 0; r < rows_; ++r) {
      search_[r] = {row_[r].w, row_[r].n, T(row_[r].radius), T(0), T(0), {}};
      guess_[r] = warm ? warm[r] : double(typical_.threshold());
      const bool guessed = typical_.trusts_guesses() && guess_[r] < 1e300 &&
                           guess_[r] * double(row_[r].n) > 0.02 * row_[r].radius;
      (guessed ? warm_row_[warms_++] : cold_row_[colds_++]) = r;
    }
  }

  // A guess by the rows before is below most thresholds if rows are sparse, and then worth a list.
  void start_warm(bool given) {
    const bool listing = !given && typical_.sparse();
    for (int i = 0; i < warms_; ++i) {
      const int r = warm_row_[i];
      Search<T>& s = search_[r];
      s.t = T(guess_[r]);
      s.f = first_excess(r, s.t, listing);
      fetch_.half(r, 0);
    }
    for (int i = 0; i < warms_; ++i) {
      const int r = warm_row_[i];
      Search<T>& s = search_[r];
      // The norm need not be known: candidate() finds out that it is above the radius, or computes it.
      const bool useful = s.f.count > 0 && s.f.sum < T(__builtin_inf()) &&
                          s.t + (s.f.sum - s.radius) / T(s.f.count) > T(0);
      // Far below the root one by other rows costs as many steps as it saves.
      const bool near = given || s.f.sum < T(listing ? 8 : 3) * s.radius;
      typical_.learn_of_guess(useful && near);
      if (useful) {
        s.p = typical_.curve();
        s.fitted = typical_.knows_curve();
        outside_row_[outside_++] = r;
        open_[opens_++] = &s;
      } else {
        s.w = row_[r].w;
        s.n = row_[r].n;
        cold_row_[colds_++] = r;
      }
    }
  }

  // f of row r at t. If it is `listing` and t is below the root, what is above t is listed, and the search goes on
  // in the list.
  LIPVAE_INLINE Excess<T> first_excess(int r, T t, bool listing) {
    Search<T>& s = search_[r];
    if constexpr (sizeof(T) == 4) {
      if (listing && s.n >= min_listed && listed_ + s.n <= list_ + max_listed) {
        const Excess<T> f = row_compact(s.w, s.n, t, listed_, fetch_);
        if (f.sum > s.radius) {
          s.w = listed_;
          s.n = f.count;
          s.floor = t;
          listed_from_[r] = t;
          listed_ += s.n;
        }
        return f;
      }
    }
    return row_excess(s.w, s.n, t, fetch_);
  }

  void start_cold(Candidate* c) {
    const bool sparse = typical_.sparse();
    for (int i = 0; i < colds_; ++i) {
      const int r = cold_row_[i];
      norms_[r] = sparse ? row_norms<true>(row_[r].w, row_[r].n, fetch_)
                         : row_norms<false>(row_[r].w, row_[r].n, fetch_);
      fetch_.half(r, 0);
    }
    for (int i = 0; i < colds_; ++i) {
      const int r = cold_row_[i];
      if (decided_by_norm(row_[r], norms_[r].sum, c[r])) continue;
      outside_row_[outside_++] = r;
      Search<T>& s = search_[r];
      s.t = T(0);
      s.f = {norms_[r].sum, s.n};
      s.floor = (norms_[r].sum - s.radius) / T(s.n);
      if (norms_[r].sum < T(1.5) * s.radius && s.last_step()) continue;
      // max |w| - radius is a lower bound too, and the better one where radius << max |w|.
      if (norms_[r].max - s.radius > s.floor) s.floor = norms_[r].max - s.radius;
      begun_row_[begun_++] = r;
    }
    T t[max_rows_at_once];
    Excess<T> f[max_rows_at_once];
    for (int i = 0; i < begun_; ++i) {
      const int r = begun_row_[i];
      Search<T>& s = search_[r];
      t[i] = typical_.start(row_[r], norms_[r].sum);
      if (!(t[i] > s.floor)) t[i] = s.floor;
      f[i] = first_excess(r, t[i], sparse);
    }
    for (int i = 0; i < begun_; ++i) {
      Search<T>& s = search_[begun_row_[i]];
      open_[opens_++] = &s;
      if (f[i].count == 0) continue;  // on from 0
      if (sparse)
        s.move(t[i], f[i]);
      else
        s.start(t[i], f[i], typical_.curve());
    }
  }

  void sum_active_sets(Candidate* c) {
    T level[max_rows_at_once];
    ActiveSum sum[max_rows_at_once];
    for (int i = 0; i < outside_; ++i) level[i] = round_down(search_[outside_row_[i]].guess, T());
    for (int i = 0; i < outside_; ++i) {
      const int r = outside_row_[i];
      const Search<T>& s = search_[r];
      const double radius = row_[r].radius;
      sum[i] = active_sum(s.w, s.n, level[i], radius);
      fetch_.half(r, 1);
      // Elements above the level are multiples of its last digit, so the sum of a list is exact, and its
      // order does not matter.
      const bool good = s.w == row_[r].w || (level[i] >= listed_from_[r] && sum[i].sum > radius &&
                                             sum[i].sum < 0x1p28 * double(level[i]));
      if (!good) sum[i] = active_sum(row_[r].w, row_[r].n, level[i], radius);
    }
    for (int i = 0; i < outside_; ++i) {
      const int r = outside_row_[i];
      c[r] = candidate(row_[r], level[i], sum[i]);
    }
  }

  const RowProblem<T>* row_;
  int rows_;
  TypicalRow& typical_;
  Fetch& fetch_;
  Search<T> search_[max_rows_at_once];
  Norms<T> norms_[max_rows_at_once];
  int warm_row_[max_rows_at_once], cold_row_[max_rows_at_once];
  int begun_row_[max_rows_at_once], outside_row_[max_rows_at_once];
  int warms_ = 0, colds_ = 0, begun_ = 0, outside_ = 0, opens_ = 0;
  Search<T>* open_[max_rows_at_once];
  T listed_from_[max_rows_at_once];
  T list_[sizeof(T) == 4 ? max_listed + 16 : 1];
  T* listed_ = list_;
  double guess_[max_rows_at_once];
};

}  // namespace lipvae::LIPVAE_ISA
