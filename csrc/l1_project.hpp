// The projection of rows onto the L1 ball: their thresholds, and the rows as they are stored.
#pragma once

#include "l1_search.hpp"

namespace lipvae::LIPVAE_ISA {

constexpr int max_settling_steps = 64;
constexpr std::int64_t rows_bytes = 16 * 1024;  // rows searched at once stay in the first-level cache
constexpr double fetched_bytes = 512.0 * 1024;  // matrices beyond it come from the last cache
constexpr double distant_bytes = 32.0 * 1024 * 1024;  // and beyond it from memory, or hardly nearer

// Rounding tau to a double moves the row's sum by up to count * ulp(tau), which matters in float64
// always and in float32 where radius << max |w|.
template <class T>
bool needs_settling(const RowProblem<T>& row, const Candidate& c) {
  return sizeof(T) == 8 || double(c.count) * c.tau > row.radius * 1e6;
}

// Corrects tau by the residual of the row as it will be stored, and leaves it on the side where the
// sum is not above radius.
template <class T>
double settle(const RowProblem<T>& row, double tau) {
  constexpr double ulp = 2.3e-16;
  double raise = tau * ulp;
  for (int step = 0; step < max_settling_steps; ++step) {
    const StoredSum stored = row_stored_sum(row.w, row.n, tau);
    if (stored.count == 0) break;
    const double over = (stored.sum - row.radius) + stored.error, count = double(stored.count);
    if (over <= 0.0 && (step > 0 || -over <= 4.0 * ulp * row.radius + count * tau * ulp)) break;
    const double corrected = tau + over / count;
    if (step == 0 && corrected != tau) {
      tau = corrected;
    } else {
      tau += raise;
      raise *= 2.0;
    }
  }
  return tau;
}

template <class T>
struct SoftThreshold {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  V level, high, low;

  explicit SoftThreshold(SplitThreshold<T> tau)
      : level(S::splat(tau.level)), high(S::splat(tau.high)), low(S::splat(tau.low)) {}
  // Lanes with |w| > tau.
  LIPVAE_INLINE typename S::Mask active(V w) const { return S::greater(S::abs(w), level); }
  // sign(w) (|w| - tau), in those lanes.
  LIPVAE_INLINE V shrink(V w) const { return (V)((I)((S::abs(w) - high) - low) | S::sign(w)); }
};

// Writes sign(w) max(|w| - tau, 0) and returns how many |w| > tau there are.
template <bool streaming, class T, class Fetch>
std::int64_t write_row(const T* w, T* out, std::int64_t n, SplitThreshold<T> tau, Fetch& fetch) {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  const SoftThreshold<T> soft(tau);
  I count[2] = {};
  auto project = [&](V v, int u) {
    const typename S::Mask active = soft.active(v);
    count[u] = S::count_where(active, count[u]);
    return S::keep(active, soft.shrink(v));
  };
  std::int64_t i = 0;
  if constexpr (streaming) {
    i = S::until_aligned(out, n);
    if (i) S::store_first(out, project(S::load_first(w, i), 0), i);
  }
  for (; i + 2 * S::lanes <= n; i += 2 * S::lanes) {
    fetch.line();
    for (int u = 0; u < 2; ++u) {
      const V value = project(S::load(w + i + u * S::lanes), u);
      if constexpr (streaming)
        S::stream(out + i + u * S::lanes, value);
      else
        S::store(out + i + u * S::lanes, value);
    }
  }
  for (; i < n; i += S::lanes) {
    if (n - i < S::lanes)
      S::store_first(out + i, project(S::load_first(w + i, n - i), 0), n - i);
    else
      S::store(out + i, project(S::load(w + i), 0));
  }
  return count_lanes<T>(count[0] + count[1]);
}

template <class T>
void fill_row(T* out, std::int64_t n, T value) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = value;
}

// Returns the row's threshold and, unless out is null, writes its projection.
template <class T, class Fetch>
double project_row(const RowProblem<T>& row, Candidate c, SplitThreshold<T> parts, T* out, bool streaming,
                   Fetch& fetch) {
  for (;;) {
    if (c.tau == 0.0) {
      if (out && out != row.w) __builtin_memcpy(out, row.w, std::size_t(row.n) * sizeof(T));
      return 0.0;
    }
    if (c.tau != c.tau) {
      for (std::int64_t i = 0; out && i < row.n; ++i) out[i] = T(c.tau);
      return c.tau;
    }
    const bool settling = needs_settling(row, c);
    // Writing before the check is worth it: the active set is nearly always right.
    const bool written = out && out != row.w && !settling;
    std::int64_t count = c.count;
    if (written)
      count = streaming ? write_row<true>(row.w, out, row.n, parts, fetch)
                        : write_row<false>(row.w, out, row.n, parts, fetch);
    else if (!c.final)
      count = row_count(row.w, row.n, parts.level);
    if (!c.final && count != c.count) {
      // Newton's steps rise to the root and every set is smaller than the last, so this ends. A
      // step that does not rise moves by rounding only.
      const Candidate next = polish(row, c.tau);
      if (next.tau > c.tau || next.tau == 0.0) {
        c = next;
        parts = split(c.tau, T());
        continue;
      }
    }
    const double tau = settling ? settle(row, c.tau) : c.tau;
    if (out && !written) write_row<false>(row.w, out, row.n, split(tau, T()), fetch);
    return tau;
  }
}

// Projects the rows of a matrix, or of parts of it that follow one another; what it learns of them changes
// the time and no result.
template <class T, class Fetch = FetchHalves>
class RowProjector {
 public:
  RowProjector(std::int64_t cols, double radius, Fetch fetch)
      : cols_(cols),
        radius_(radius),
        at_once_(rows_bytes / (cols * std::int64_t(sizeof(T)) + 1)),
        fetch_(fetch) {
    if (at_once_ < 1) at_once_ = 1;
    if (at_once_ > max_rows_at_once) at_once_ = max_rows_at_once;
  }

  // Writes the thresholds of `count` rows and, unless out is null, their projections. warm, or null, holds
  // guesses of the thresholds.
  void project(const T* weight, std::int64_t count, const double* warm, T* out, double* threshold,
               bool streaming) {
    for (std::int64_t first = 0, next; first < count; first = next) {
      // The first row alone, for those after it to learn from.
      next = alone_ ? first + 1 : first + at_once_ < count ? first + at_once_ : count;
      alone_ = false;
      const int rows = int(next - first);
      RowProblem<T> row[max_rows_at_once];
      Candidate c[max_rows_at_once];
      for (int i = 0; i < rows; ++i) row[i] = {weight + (first + i) * cols_, cols_, radius_};
      fetch_.start(row[0].w, cols_, rows);
      RowBlock<T, Fetch>(row, rows, typical_, fetch_).first_candidates(warm ? warm + first : nullptr, c);
      SplitThreshold<T> parts[max_rows_at_once];
      for (int i = 0; i < rows; ++i) parts[i] = split(c[i].tau, T());
      for (int i = 0; i < rows; ++i) {
        T* const to = out ? out + (first + i) * cols_ : nullptr;
        threshold[first + i] = project_row(row[i], c[i], parts[i], to, streaming, fetch_);
      }
      fetch_.rest();
    }
  }

 private:
  std::int64_t cols_;
  double radius_;
  std::int64_t at_once_;
  Fetch fetch_;
  bool alone_ = true;
  TypicalRow typical_;
};

}  // namespace lipvae::LIPVAE_ISA
