// The terms of a product that are not zero. What a ReLU has switched off for all rows of a strip, as it does
// for most samples of one image together, may be left out: the sums keep their bits if the weight is finite.
#pragma once

#include "row_groups.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

// Appends first + i for each bit i of mask. May write `index_slack` places beyond.
constexpr int index_slack = 16;
LIPVAE_INLINE std::int32_t* append_indices(unsigned mask, std::int32_t first, std::int32_t* to) {
#if defined(__AVX512F__)
  const __m512i all = _mm512_add_epi32(_mm512_set1_epi32(first), (__m512i)Simd<float>::iota());
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), all));
  return to + __builtin_popcount(mask);
#else
  for (; mask; mask &= mask - 1) *to++ = first + __builtin_ctz(mask);
  return to;
#endif
}

// Appends each i in [begin, end) for which x[i] is not zero in one of a few rows.
template <class T>
std::int32_t* append_nonzero(const T* x, std::int64_t stride, std::int64_t rows, std::int32_t begin,
                             std::int32_t end, std::int32_t* to) {
  using S = Simd<T>;
  for (std::int32_t i = begin; i < end; i += S::lanes) {
    const std::int32_t left = end - i;
    typename S::I bits{};
    if (left >= S::lanes)
      for (std::int64_t r = 0; r < rows; ++r) bits |= (typename S::I)S::load(x + r * stride + i);
    else
      for (std::int64_t r = 0; r < rows; ++r) bits |= (typename S::I)S::load_first(x + r * stride + i, left);
    to = append_indices(S::movemask((bits & ~S::splat_int(S::sign_bit)) != typename S::I{}), i, to);
  }
  return to;
}

// For every strip of rows of x the ascending indices of its terms, in segments of the inner dimension.
class NonzeroTerms {
 public:
  // end(s) is where segment s ends; `most` is of for_each_strip.
  template <class T, class End>
  NonzeroTerms(RowCounts counts, const RowPlaces<const T>& x, std::int64_t inner, std::int64_t most,
               std::int64_t segments, End&& end)
      : segments_(segments), room_(inner + index_slack + segments),
        scratch_(counts.strips(most) * room_ * std::int64_t(sizeof(std::int32_t))) {
    std::int32_t* place = memory();
    for_each_strip(counts, most, [&](std::int64_t group, std::int64_t row, std::int64_t height) {
      std::int32_t *const first = place + segments, *to = first;
      std::int32_t begin = 0;
      // To go through a list takes more than it saves where little can be left out, and so does to make one.
      bool full = false;
      for (std::int64_t s = 0; s < segments && !full; ++s) {
        const auto until = std::int32_t(end(s));
        to = append_nonzero(x.at(group, row), x.stride, height, begin, until, to);
        place[s] = std::int32_t(to - first);
        begin = until;
        full = (to - first) * 16 > std::int64_t(until) * 15;
      }
      if (full || (to - first) * 8 > inner * 7) place[segments - 1] = -1;
      place += room_;
    });
  }
  // Whether a strip had better take all terms.
  bool all(std::int64_t strip) const { return memory()[strip * room_ + segments_ - 1] < 0; }
  const std::int32_t* begin(std::int64_t strip, std::int64_t segment) const {
    const std::int32_t* const place = memory() + strip * room_;
    return place + segments_ + (segment ? place[segment - 1] : 0);
  }

 private:
  std::int32_t* memory() const { return static_cast<std::int32_t*>(scratch_.get()); }

  std::int64_t segments_, room_;
  Scratch scratch_;
};

}  // namespace lipvae::LIPVAE_ISA
