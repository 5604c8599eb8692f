// Sums of Bernoulli log densities in 15 or 16 vector operations for as many logits as a vector holds.
// Where add() of families.hpp takes every logit, they leave out what few rows need: the clamp of large
// logits, and the digits of factors 1 + e^-|l| that are nearly 1. A block that needs them is found out,
// and the caller adds it up with add().
#pragma once

#include "memory.hpp"
#include "vector_math.hpp"

namespace lipvae::LIPVAE_ISA {

// 2^r, minimax for the relative error: 2.9e-7 on |r| <= 1/8, 4.3e-7 on |r| <= 1/32.
constexpr float exp2_of_eighths[] = {0.999999702f, 0.693147600f, 0.240376711f, 0.0554832779f};
constexpr float exp2_of_thirty_seconds[] = {1.0f, 0.693187714f, 0.240226433f};

// 2^-j/entries without its j, and with the surplus: less an integer's bits, moved to the exponent, it is the
// power of two.
constexpr std::int32_t exponent_surplus = 2 << 23;
struct RootTable {
  alignas(vector_bytes) std::int32_t entry[vector_bytes / 4];
};
constexpr RootTable make_root_table(int entries) {
  constexpr std::int32_t sixteenth[] = {
      0x3f800000, 0x3f75257d, 0x3f6ac0c7, 0x3f60ccdf, 0x3f5744fd, 0x3f4e248c, 0x3f45672a, 0x3f3d08a4,
      0x3f3504f3, 0x3f2d583f, 0x3f25fed7, 0x3f1ef532, 0x3f1837f0, 0x3f11c3d3, 0x3f0b95c2, 0x3f05aac3};
  RootTable table{};
  for (int i = 0; i < vector_bytes / 4; ++i) {
    const int j = i % entries;
    table.entry[i] = sixteenth[j * (16 / entries)] + j * ((1 << 23) / entries) + exponent_surplus;
  }
  return table;
}

// Takes e^-x for 0 <= x < 87. Where the processor looks up 2^-j/4 in a register, a cubic is enough, and a
// parabola where it looks up 2^-j/16.
struct QuickExpMinus {
  using S = Simd<float>;
  using V = S::V;
  static constexpr int steps = S::lookup_entries ? S::lookup_entries : 1;  // in a power of two
  static constexpr int exponent_shift = steps == 16 ? 19 : steps == 4 ? 21 : 23;
  static constexpr RootTable roots = make_root_table(steps);
  // Adding it rounds to a multiple of 1 / steps, whose integer is in the last bits. It is two powers
  // too high, so that the integer has one bit more as soon as the result is out of range.
  static constexpr float magic = ExpConstants<float>::magic / steps + 2.0f;
  S::I seen = {};  // bits of the integers

  // product (1 + e^-x). The product takes the scale first, which is ready before the power.
  LIPVAE_INLINE V grow(V product, V x) {
    V scale;
    const V power = parts(x, scale);
    return product + product * scale * power;
  }
  // The same in the valid lanes.
  LIPVAE_INLINE V grow(V product, V x, S::I valid) {
    V scale;
    const V power = parts(x, scale);
    return product + product * S::keep(valid, scale) * power;
  }
  // Whether every argument was in range; a NaN is not.
  LIPVAE_INLINE bool in_range() const {
    constexpr float base = ExpConstants<float>::magic / steps;
    std::int32_t allowed;
    __builtin_memcpy(&allowed, &base, sizeof allowed);
    allowed |= 128 * steps - 1;
    return S::movemask((seen & S::splat_int(~allowed)) != S::I{}) == 0;
  }

 private:
  // Out of range it wraps around, which signed numbers may not.
  static LIPVAE_INLINE S::I subtract(S::I a, S::I b) {
    typedef std::uint32_t U __attribute__((vector_size(vector_bytes)));
    return (S::I)((U)a - (U)b);
  }
  LIPVAE_INLINE V parts(V x, V& scale) {
    const V log2e = S::splat(ExpConstants<float>::log2e), shifted = S::splat(magic) + x * log2e;
    const V r = (shifted - S::splat(magic)) - x * log2e;
    const S::I bits = (S::I)shifted;
    seen |= bits;
    S::I root;
    __builtin_memcpy(&root, roots.entry, sizeof root);
    if constexpr (steps > 1) root = S::lookup(root, bits);
    scale = (V)subtract(root, bits << exponent_shift);
    if constexpr (steps == 16)
      return horner(exp2_of_thirty_seconds, r);
    else if constexpr (steps == 4)
      return horner(exp2_of_eighths, r);
    else
      return S::splat(1.0f) + r * horner(ExpConstants<float>::slope_of_exp2, r);
  }
};

// The products of all lanes are finite.
constexpr std::int64_t bernoulli_block_length =
    max_lane_factors * Simd<float>::lanes < max_factors ? max_lane_factors * Simd<float>::lanes : max_factors;

// Where the targets of a few rows of logits start: often all at the same place.
template <int rows>
struct Targets {
  const float* row[rows];
};

// Sums x_i l_i - log(1 + e^l_i) over a block of dimensions [start, start + n), n at most
// bernoulli_block_length, for several rows of logits, so that the end of one hides behind another's. Row
// r starts at logits + r * stride. A row that would lose digits gets a NaN.
template <int rows>
LIPVAE_INLINE void bernoulli_block(const float* logits, std::int64_t stride, const Targets<rows>& target,
                                   std::int64_t start, std::int64_t n, double* out) {
  using S = Simd<float>;
  using V = S::V;
  logits += start;
  V linear[rows] = {}, product[rows];
  QuickExpMinus exp_minus[rows];
  for (int r = 0; r < rows; ++r) product[r] = S::splat(1.0f);
  auto add = [&](int r, V l, V x) __attribute__((always_inline)) {
    const S::I bits = (S::I)l;
    linear[r] += x * l - (V)(bits > 0 ? bits : S::I{});  // max(l, 0), on more ports than as a float
  };
  const std::int64_t ahead = reading_ahead;
  std::int64_t i = 0;
  for (; i + 2 * S::lanes <= n; i += 2 * S::lanes) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) prefetch_at<2 * vector_bytes>(logits + r * stride + i, ahead);
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const V x = S::load(target.row[r] + start + i + s * S::lanes);
        const V l = S::load(logits + r * stride + i + s * S::lanes);
        add(r, l, x);
        product[r] = exp_minus[r].grow(product[r], S::abs(l));
      }
    }
  }
  for (; i < n; i += S::lanes) {
    const bool partial = n - i < S::lanes;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const float *at = logits + r * stride + i, *image = target.row[r] + start + i;
      const V x = partial ? S::load_first(image, n - i) : S::load(image);
      const V l = partial ? S::load_first(at, n - i) : S::load(at);
      add(r, l, x);
      product[r] = exp_minus[r].grow(product[r], S::abs(l), S::first(n - i));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    Simd<double>::V sums = {}, products = Simd<double>::splat(1.0);
    for_each_double<float>(linear[r], [&](auto part) { sums += part; });
    for_each_double<float>(product[r], [&](auto part) { products *= part; });
    const double log_likelihood =
        add_lanes<double>(sums) - __builtin_log(multiply_lanes<double>(products));
    // A factor loses 2^-24 at most. That is 2^-19 of a sum of this size, and much less if it is random.
    const bool precise = exp_minus[r].in_range() && log_likelihood * -32.0 >= double(n);
    out[r] = precise ? log_likelihood : __builtin_nan("");
  }
}

}  // namespace lipvae::LIPVAE_ISA
