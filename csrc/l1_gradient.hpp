// The gradient of a row from that of its projection onto the L1 ball: what lies along the ball's face.
#pragma once

#include "l1_row.hpp"

namespace lipvae::LIPVAE_ISA {

// mean of sign(w) g over |w| > level. Float lanes are emptied into doubles every 64 additions.
template <class T>
double active_mean(const T* g, const T* w, std::int64_t n, T level_) {
  using S = Simd<T>;
  using V = typename S::V;
  const V level = S::splat(level_);
  typename S::I count[2] = {};
  double sum = 0.0;
  constexpr std::int64_t chunk = 128 * S::lanes;
  for (std::int64_t start = 0; start < n; start += chunk) {
    const std::int64_t end = n - start < chunk ? n : start + chunk;
    V part[2] = {};
    auto add = [&](V wi, V gi, int u) {
      const typename S::Mask active = S::greater(S::abs(wi), level);
      count[u] = S::count_where(active, count[u]);
      part[u] = S::add_where(active, part[u], (V)((typename S::I)gi ^ S::sign(wi)));
    };
    std::int64_t i = start;
    for (; i + 2 * S::lanes <= end; i += 2 * S::lanes) {
      add(S::load(w + i), S::load(g + i), 0);
      add(S::load(w + i + S::lanes), S::load(g + i + S::lanes), 1);
    }
    for (; i + S::lanes <= end; i += S::lanes) add(S::load(w + i), S::load(g + i), 0);
    if (i < end) add(S::load_first(w + i, end - i), S::load_first(g + i, end - i), 0);
    sum += double(add_lanes<T>(part[0] + part[1]));
  }
  return sum / double(count_lanes<T>(count[0] + count[1]));
}

template <bool streaming, class T>
void write_gradient(const T* g, const T* w, T* out, std::int64_t n, T level_, T mean_) {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  const V level = S::splat(level_), mean = S::splat(mean_);
  auto correct = [&](V wi, V gi) {
    const V signed_mean = (V)((I)mean ^ S::sign(wi));
    return S::keep(S::greater(S::abs(wi), level), gi - signed_mean);
  };
  std::int64_t i = 0;
  if constexpr (streaming) {
    i = S::until_aligned(out, n);
    if (i) S::store_first(out, correct(S::load_first(w, i), S::load_first(g, i)), i);
  }
  for (; i + S::lanes <= n; i += S::lanes) {
    const V value = correct(S::load(w + i), S::load(g + i));
    if constexpr (streaming)
      S::stream(out + i, value);
    else
      S::store(out + i, value);
  }
  if (i < n) S::store_first(out + i, correct(S::load_first(w + i, n - i), S::load_first(g + i, n - i)), n - i);
}

// g, of n numbers, is the gradient of P(w) with the threshold tau. out may be g.
template <class T>
void gradient_row(const T* g, const T* w, std::int64_t n, double tau, T* out, bool streaming) {
  if (tau == 0.0) {
    if (out != g) __builtin_memcpy(out, g, std::size_t(n) * sizeof(T));
  } else if (tau != tau) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = T(tau);
  } else {
    const T level = round_down(tau, T());
    const T mean = T(active_mean(g, w, n, level));
    if (streaming)
      write_gradient<true>(g, w, out, n, level, mean);
    else
      write_gradient<false>(g, w, out, n, level, mean);
  }
}

}  // namespace lipvae::LIPVAE_ISA
