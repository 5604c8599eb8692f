// What the rows of one matrix have in common, learnt from those before. It changes the time that a search
// takes and not its result.
#pragma once

#include "l1_steps.hpp"

namespace lipvae::LIPVAE_ISA {

class TypicalRow {
 public:
  // Whether rows of n have so few active elements that their tops should be all of them.
  bool few(std::int64_t n) const { return thresholds_ > 0 && share_ < 0.5f && share_ * float(n) < 24.0f; }
  bool knows_enough() const { return rows_ >= 16; }
  // Whether guesses of the threshold have helped.
  bool trusts_guesses() const { return useless_ < 0.5f; }
  // The p for which f^p is a straight line (see l1_steps.hpp).
  float curve() const { return curve_; }
  bool knows_curve() const { return rows_ > 0 || curves_ > 3; }

  // A guess of the threshold of the next row, 0 before anything is known.
  float threshold() const { return threshold_; }
  // A guess that is below most. Newton's steps rise to the root from there, and from above overshoot it.
  float low_threshold() const { return low_; }

  // A start for a row outside the ball: Newton's step from 0, which is a lower bound and exact at the
  // ball's boundary, and beyond it in proportion to what a box has there. That is right for rows whose
  // magnitudes are distributed alike but for scale.
  template <class T>
  LIPVAE_INLINE T start(const RowProblem<T>& row, T norm) const {
    return (norm - T(row.radius)) / T(row.n) + T(mean_) * box_beyond_newton(row, norm);
  }

  // From a row outside the ball, its threshold and how many elements are above it.
  template <class T>
  LIPVAE_INLINE void learn(const RowProblem<T>& row, T norm, double tau, std::int64_t count) {
    if (!(norm > T(1.05) * T(row.radius)) || count == 0) return;
    const T newton = (norm - T(row.radius)) / T(row.n);
    const float beyond = float((T(tau) - newton) / box_beyond_newton(row, norm));
    if (!(beyond > 0.0f && beyond < 1e3f)) return;
    ++rows_;
    const float rate = rows_ < 20 ? 1.0f / float(rows_) : 0.05f;
    mean_ += rate * (beyond - mean_);
    curve_ += rate * (fitted_curve(Excess<T>{norm, row.n}, Excess<T>{T(row.radius), count}, 0.5f) - curve_);
  }
  // From the threshold of a row, found from a guess or not, and how many elements are above it.
  template <class T>
  void learn_threshold(const RowProblem<T>& row, double tau, std::int64_t count) {
    const float t = float(tau);
    if (!(t > 0.0f && t < 1e30f)) return;
    ++thresholds_;
    const float rate = thresholds_ < 20 ? 1.0f / float(thresholds_) : 0.05f;
    threshold_ += rate * (t - threshold_);
    low_ = thresholds_ == 1 || t < low_ ? t : low_ + 0.2f * rate * (t - low_);
    share_ += rate * (float(count) / float(row.n) - share_);
  }
  // From a row with f known near the root.
  template <class T>
  LIPVAE_INLINE void learn_curve(const RowProblem<T>& row, Excess<T> f, std::int64_t count) {
    const float gap = float(f.sum / T(row.radius)) - 1.0f;
    if ((gap < 0.01f && gap > -0.01f) || count == 0) return;
    ++curves_;
    curve_ += 0.1f * (fitted_curve(f, Excess<T>{T(row.radius), count}, curve_) - curve_);
  }
  void learn_of_guess(bool useful) { useless_ += 0.2f * (float(!useful) - useless_); }

 private:
  // What the threshold of a box is above Newton's step.
  template <class T>
  static LIPVAE_INLINE T box_beyond_newton(const RowProblem<T>& row, T norm) {
    const T root = T(__builtin_sqrt(norm)) - T(__builtin_sqrt(row.radius));
    return root * root / T(row.n);
  }

  float mean_ = 0.8f;  // of the threshold beyond Newton's step, as a share of a box's
  float share_ = 0.0f, useless_ = 0.0f, curve_ = 0.5f;
  float threshold_ = 0.0f, low_ = 0.0f;
  int rows_ = 0, curves_ = 0, thresholds_ = 0;
};

}  // namespace lipvae::LIPVAE_ISA
