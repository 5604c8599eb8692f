// The few large elements of a sparse row.
#pragma once

#include "l1_row.hpp"

namespace lipvae::LIPVAE_ISA {

// The four largest |w| of each of 16 lanes, where element i is in lane i % 16: ranks in descending order, so all that
// a row has above the largest of the last rank is here. To gather them takes fewer instructions than f at one t, needs
// no t, and stores nothing on the way.
template <class T>
struct Tops {
  static constexpr int ranks = 4, lanes = 16, size = ranks * lanes;
  alignas(64) T value[size];
};

// The largest of each lane of a vector. As integers, magnitudes are in the same order and NaN is above infinity.
template <class T>
struct RankedLanes {
  using I = typename Simd<T>::I;
  I rank[Tops<T>::ranks] = {};

  static LIPVAE_INLINE I larger(I a, I b) { return a > b ? a : b; }
  static LIPVAE_INLINE void sort(I& a, I& b) {
    const I first = larger(a, b);
    b = a > b ? b : a;
    a = first;
  }
  LIPVAE_INLINE void add(I a) {
    sort(rank[0], a);
    sort(rank[1], a);
    sort(rank[2], a);
    rank[3] = larger(rank[3], a);
  }
  // Four sorted, and merged with those here; of the eight only the larger four are sorted again.
  LIPVAE_INLINE void add(I a, I b, I c, I d) {
    sort(a, b);
    sort(c, d);
    sort(a, c);
    sort(b, d);
    sort(b, c);
    rank[0] = larger(rank[0], d);
    rank[1] = larger(rank[1], c);
    rank[2] = larger(rank[2], b);
    rank[3] = larger(rank[3], a);
    sort(rank[0], rank[2]);
    sort(rank[1], rank[3]);
    sort(rank[0], rank[1]);
    sort(rank[2], rank[3]);
  }
};

// A vector's lanes at a time, so that their ranks stay in registers.
template <class T, class Fetch>
LIPVAE_INLINE void row_tops(const T* w, std::int64_t n, Tops<T>& tops, Fetch& fetch) {
  using S = Simd<T>;
  constexpr int lanes = Tops<T>::lanes;
  auto magnitude = [](typename S::V v) { return (typename S::I)S::abs(v); };
  for (int lane = 0; lane < lanes; lane += S::lanes) {
    RankedLanes<T> top;
    std::int64_t i = lane;
    for (; i + 3 * lanes + S::lanes <= n; i += 4 * lanes) {
      fetch.line();
      fetch.line();
      top.add(magnitude(S::load(w + i)), magnitude(S::load(w + i + lanes)), magnitude(S::load(w + i + 2 * lanes)),
              magnitude(S::load(w + i + 3 * lanes)));
    }
    for (; i + S::lanes <= n; i += lanes) top.add(magnitude(S::load(w + i)));
    if (i < n) top.add(magnitude(S::load_first(w + i, n - i)));
    for (int rank = 0; rank < Tops<T>::ranks; ++rank)
      S::store(tops.value + rank * lanes + lane, (typename S::V)top.rank[rank]);
  }
}

// The largest of a rank, or a NaN of it.
template <class T>
LIPVAE_INLINE T largest(const Tops<T>& tops, int rank) {
  using S = Simd<T>;
  using I = typename S::I;
  const T* const value = tops.value + rank * Tops<T>::lanes;
  I most = (I)S::load(value);
#pragma GCC unroll 4
  for (int lane = S::lanes; lane < Tops<T>::lanes; lane += S::lanes)
    most = RankedLanes<T>::larger(most, (I)S::load(value + lane));
  const typename S::Int bits = fold_lanes(most, [](I a, I b) { return RankedLanes<T>::larger(a, b); });
  T largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  return largest;
}

// Calls body(v, |w| > t, its place of four) with each vector of the tops and returns how many |w| > t there are.
template <class T, class Body>
LIPVAE_INLINE std::int64_t for_each_top(const Tops<T>& tops, T t, Body&& body) {
  using S = Simd<T>;
  std::int64_t count = 0;
  const typename S::V level = S::splat(t);
#pragma GCC unroll 16
  for (int i = 0; i < Tops<T>::size; i += 4 * S::lanes) {
    typename S::Mask above[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const typename S::V v = S::load(tops.value + i + u * S::lanes);
      above[u] = S::greater(v, level);
      body(v, above[u], u);
    }
    count += __builtin_popcountll(S::movemask4(above));
  }
  return count;
}

// f at t, of what the tops hold.
template <class T>
LIPVAE_INLINE Excess<T> tops_excess(const Tops<T>& tops, T t) {
  using S = Simd<T>;
  typename S::V sum[2] = {};
  const typename S::V level = S::splat(t);
  const std::int64_t count = for_each_top(tops, t, [&](typename S::V v, typename S::Mask above, int u) {
    sum[u & 1] = S::add_where(above, sum[u & 1], v - level);
  });
  return {add_lanes<T>(sum[0] + sum[1]), count};
}

// The sum over |w| > t, in no particular order.
LIPVAE_INLINE ActiveSum tops_active_sum(const Tops<float>& tops, float t) {
  using S = Simd<float>;
  Simd<double>::V sum[2] = {};
  const std::int64_t count = for_each_top(tops, t, [&](S::V v, S::Mask above, int) {
    Simd<double>::V low, high;
    widen(S::keep(above, v), low, high);
    sum[0] += low;
    sum[1] += high;
  });
  return {add_lanes<double>(sum[0] + sum[1]), count};
}

}  // namespace lipvae::LIPVAE_ISA
