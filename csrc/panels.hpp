// A matrix product whose rows do not reach each other: an element of x W^T is the same multiply-adds in
// the same order, whatever rows stand beside it and however they are tiled.
//
// The weight lies in panels. A panel holds the bias of a few vectors of columns, then their weights, as
// many vectors for each step along the inner dimension.
#pragma once

#include <type_traits>

#include "nonzero_terms.hpp"
#include "transpose.hpp"

namespace lipvae::LIPVAE_ISA {

// Terms that are added up one by one; sums of so many are then added. It keeps the rounding small.
constexpr std::int64_t chain = 256;

template <class T>
struct Panel {
  using S = Simd<T>;
  // A step reads `vectors` of the panel and broadcasts one number of each row of x, for `sums`
  // multiply-adds. With AVX-512 the squarest shape, which loads least, is faster beside a busy neighbour.
#if defined(__AVX512F__)
  static constexpr int vectors = 4, sums = 24;
#elif defined(__aarch64__)
  static constexpr int vectors = 2, sums = 24;
#else
  static constexpr int vectors = 2, sums = 12;
#endif
  static constexpr int width = vectors * S::lanes;
  // Rows of x at a time, beside so many vectors.
  static constexpr int rows_beside(int some) { return sums / some < 12 ? sums / some : 12; }
  static constexpr int rows = rows_beside(vectors);
  // Not fewer in a strip whose zero terms are left out.
  static constexpr int listed_rows = rows / 2;
  // So much of a panel, 32 kB at most, stays in the first cache while rows go by.
  static constexpr std::int64_t fit = 32 * 1024 / (width * std::int64_t(sizeof(T)));
  static constexpr std::int64_t depth = fit < 2 * chain ? fit : 2 * chain;
  // Rows that stay in the second cache while panels go by.
  static std::int64_t tile(std::int64_t inner) {
    constexpr std::int64_t numbers = (vector_bytes < 64 ? 256 : 512) * 1024 / std::int64_t(sizeof(T));
    const std::int64_t whole = inner ? numbers / inner : numbers;
    return whole > 4 * rows ? whole : 4 * rows;
  }

  // Rows of a usual batch, which take one tile whatever `inner`.
  static std::int64_t batch(std::int64_t inner) { return tile(inner) > 128 ? tile(inner) : 128; }

  static std::int64_t count(std::int64_t columns) { return (columns + width - 1) / width; }
  static std::int64_t size(std::int64_t inner) { return (1 + inner) * width; }
};

// One panel of the columns [0, columns) whose weights lie `inner` apart. Columns beyond are 0.
template <class T>
void pack_panel(const T* weight, const T* bias, std::int64_t columns, std::int64_t inner, T* panel) {
  constexpr int width = Panel<T>::width;
  const int filled = columns < width ? int(columns) : width;
  for (int c = 0; c < width; ++c) panel[c] = c < filled && bias ? bias[c] : T(0);
  panel += width;
  transpose<T>(weight, inner, filled, inner, panel, width);
  for (std::int64_t i = 0; filled < width && i < inner; ++i)
    for (int c = filled; c < width; ++c) panel[i * width + c] = T(0);
}

// A column of a weight that is not finite is NaN for all rows, also where it would be left out.
template <class T>
void mark_not_finite(T* panel, std::int64_t inner) {
  using S = Simd<T>;
  using P = Panel<T>;
  typename S::V nothing[P::vectors] = {};
  for (std::int64_t i = 1; i <= inner; ++i)
    for (int v = 0; v < P::vectors; ++v) nothing[v] += S::load(panel + i * P::width + v * S::lanes) * S::splat(T(0));
  for (int v = 0; v < P::vectors; ++v) {
    T* const bias = panel + v * S::lanes;
    S::store(bias, S::load(bias) + nothing[v]);
  }
}

// Memory that a product asks for as it goes, a little with each term.
struct Ahead {
  const char* first = nullptr;
  std::int64_t bytes = 0;

  template <class T>
  static Ahead of(const T* begin, std::int64_t numbers) {
    return {reinterpret_cast<const char*>(begin), numbers * std::int64_t(sizeof(T))};
  }
  Ahead share(std::int64_t i, std::int64_t shares) const {
    const std::int64_t begin = i * bytes / shares;
    return {first + begin, (i + 1) * bytes / shares - begin};
  }
};

// Terms of a part of the inner dimension, in one or two chains.
struct AllTerms {
  std::int64_t begin, middle, end;
};
struct ListedTerms {
  const std::int32_t *begin, *middle, *end;
};

// Products of a few rows of x with one panel, for a part of the inner dimension.
template <class T>
struct Strip {
  const T* x;
  std::int64_t x_stride;
  const T* panel;  // its weights
  const T* start;  // what the part is added to: the bias, or the sums so far
  std::int64_t start_stride;
  T* out;
  std::int64_t out_stride, columns;  // of the panel
  bool relu;
  const char* ahead;  // what the first term asks for, and how far on the next one does
  std::int64_t ahead_step;
};

template <class T, int rows, int vectors, class Terms>
void multiply_rows(const Strip<T>& a, const Terms& terms) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int width = Panel<T>::width;
  const std::int64_t x_stride = a.x_stride;
  const char* ahead = a.ahead;
  const std::int64_t ahead_step = a.ahead_step;
  V sum[rows][vectors] = {};
  auto add_term = [&](const T* x, const T* panel) __attribute__((always_inline)) {
    V w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) w[v] = S::load(panel + v * S::lanes);
    __builtin_prefetch(ahead, 0, 2);
    ahead += ahead_step;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const V factor = S::splat(x[r * x_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += factor * w[v];
    }
  };
  auto add_chain = [&](auto begin, auto end) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<Terms, ListedTerms>) {
      for (auto i = begin; i != end; ++i) add_term(a.x + *i, a.panel + std::int64_t(*i) * width);
    } else {
      const T *x = a.x + begin, *panel = a.panel + begin * width;
      for (const T* const last = a.panel + end * width; panel != last; panel += width, ++x) add_term(x, panel);
    }
  };
  auto each = [&](auto&& body) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) body(r, v);
  };
  if (Panel<T>::depth <= chain || terms.middle == terms.end) {
    add_chain(terms.begin, terms.end);
  } else {
    add_chain(terms.begin, terms.middle);
    V first[rows][vectors];
    each([&](int r, int v) __attribute__((always_inline)) {
      first[r][v] = sum[r][v];
      sum[r][v] = V{};
    });
    add_chain(terms.middle, terms.end);
    each([&](int r, int v) __attribute__((always_inline)) { sum[r][v] += first[r][v]; });
  }
  const T* start = a.start;
  T* out = a.out;
  const std::int64_t start_stride = a.start_stride, out_stride = a.out_stride;
  const std::int64_t last = a.columns - (vectors - 1) * S::lanes;  // columns of the last vector, or more
  const V least = S::splat(a.relu ? T(0) : -T(__builtin_inf()));
  each([&](int r, int v) __attribute__((always_inline)) {
    const T* from = start + r * start_stride + v * S::lanes;
    T* to = out + r * out_stride + v * S::lanes;
    if (v < vectors - 1 || last >= S::lanes)
      S::store(to, S::max(least, S::load(from) + sum[r][v]));  // a NaN passes
    else
      S::store_first(to, S::max(least, S::load_first(from, last) + sum[r][v]), last);
  });
}

// multiply_rows for a number of rows known at run time, which with listed terms are not few.
template <class T, int vectors, class Terms, int most = Panel<T>::rows_beside(vectors)>
void multiply_strip(std::int64_t rows, const Strip<T>& a, const Terms& terms) {
  constexpr int least = std::is_same_v<Terms, ListedTerms> ? Panel<T>::listed_rows : 1;
  if constexpr (most > least)
    if (rows < most) return multiply_strip<T, vectors, Terms, most - 1>(rows, a, terms);
  multiply_rows<T, most, vectors>(a, terms);
}

// out = x W^T + bias or its positive part, for the panels of `columns` columns; or out += x W^T.
template <class T>
struct Product {
  RowCounts counts;
  RowPlaces<const T> x;
  std::int64_t inner;
  const T* panels;
  std::int64_t columns;
  bool relu;
  RowPlaces<T> out;
  bool onto = false;  // adds to what out holds, and not to the bias
  Ahead ahead = {};   // what is used after this product; none: what follows in the panels
};

// The parts of the inner dimension whose sums are added, and the one or two chains of each.
template <class T>
struct Parts {
  static constexpr int chains = Panel<T>::depth > chain ? 2 : 1;
  std::int64_t inner, count;

  explicit Parts(std::int64_t length)
      : inner(length), count(length > Panel<T>::depth ? (length + Panel<T>::depth - 1) / Panel<T>::depth : 1) {}
  AllTerms operator[](std::int64_t part) const {
    const std::int64_t begin = part * inner / count, end = (part + 1) * inner / count;
    return {begin, chains == 2 && end - begin > chain ? begin + chain : end, end};
  }
  // Where the chains end, of all parts one after the other.
  std::int64_t chain_end(std::int64_t i) const {
    const AllTerms part = (*this)[i / chains];
    return i % chains + 1 < chains ? part.middle : part.end;
  }
};

// One part of one panel, for all rows. `listed` may be null.
template <class T, int vectors = Panel<T>::vectors>
void multiply_panel(const Product<T>& p, std::int64_t column, const T* panel, const Parts<T>& parts,
                    std::int64_t part, const NonzeroTerms* listed, std::int64_t slice, std::int64_t slices) {
  const std::int64_t columns = p.columns - column;
  if constexpr (vectors > 1)
    if (columns <= (vectors - 1) * Simd<T>::lanes)
      return multiply_panel<T, vectors - 1>(p, column, panel, parts, part, nullptr, slice, slices);
  constexpr int most = Panel<T>::rows_beside(vectors), width = Panel<T>::width;
  const std::int64_t strips = p.counts.strips(most);
  const AllTerms all = parts[part];
  const T* const weights = panel + width;
  const bool onto = part || p.onto;
  // What follows in the panels is the next part of one, or the next one, or nothing.
  const std::int64_t part_numbers = strips < 4 ? 0 : (all.end - all.begin) * width;
  const Ahead next =
      p.ahead.bytes ? p.ahead.share(slice, slices) : Ahead::of(weights + all.end * width, part_numbers);
  std::int64_t i = 0;
  for_each_strip(p.counts, most, [&](std::int64_t group, std::int64_t row, std::int64_t height) {
    const Ahead ahead = next.share(i, strips);
    T* const out = p.out.at(group, row) + column;
    Strip<T> strip{p.x.at(group, row), p.x.stride, weights, onto ? out : panel, onto ? p.out.stride : 0, out,
                   p.out.stride, columns, p.relu && part == parts.count - 1, ahead.first, 0};
    auto ask = [&](std::int64_t terms) { strip.ahead_step = terms ? (ahead.bytes + terms - 1) / terms : 0; };
    if (vectors == Panel<T>::vectors && listed && !listed->all(i)) {
      const std::int64_t first = part * parts.chains;
      const ListedTerms terms{listed->begin(i, first), listed->begin(i, first + 1),
                              listed->begin(i, first + parts.chains)};
      ask(terms.end - terms.begin);
      multiply_strip<T, Panel<T>::vectors>(height, strip, terms);
    } else {
      ask(all.end - all.begin);
      multiply_strip<T, vectors>(height, strip, all);
    }
    ++i;
  });
}

template <class T>
void multiply_panels(const Product<T>& p, const Parts<T>& parts, const NonzeroTerms* listed) {
  using P = Panel<T>;
  const std::int64_t slices = P::count(p.columns) * parts.count;
  const T* panel = p.panels;
  std::int64_t slice = 0;
  for (std::int64_t column = 0; column < p.columns; column += P::width, panel += P::size(p.inner))
    for (std::int64_t part = 0; part < parts.count; ++part, ++slice)
      multiply_panel(p, column, panel, parts, part, listed, slice, slices);
}

// Called for at most Panel::tile rows, it keeps to the second cache. Where x may hold many zeros, they are
// looked for; the weight has been through mark_not_finite then.
template <class T>
void multiply(const Product<T>& p, bool sparse) {
  using P = Panel<T>;
  const Parts<T> parts(p.inner);
  constexpr int chains = Parts<T>::chains, rows = P::rows;
  const bool worth = p.columns >= P::width && p.counts.rows >= P::listed_rows && p.inner >= 16;
  if (!sparse || !worth || p.inner > INT32_MAX) return multiply_panels<T>(p, parts, nullptr);
  const NonzeroTerms listed(p.counts, p.x, p.inner, rows, parts.count * chains,
                            [&](std::int64_t i) { return parts.chain_end(i); });
  multiply_panels<T>(p, parts, &listed);
}

// In linear.cpp, once: each has its loops unrolled for every number of rows.
extern template void multiply(const Product<float>&, bool);
extern template void multiply(const Product<double>&, bool);

// What parallel_for takes for the work of a product: a core multiplies about twenty bytes' worth of
// numbers in the time that it streams one.
template <class T>
double product_bytes(std::int64_t rows, std::int64_t inner, std::int64_t columns) {
  return double(rows) * double(inner) * double(columns) * sizeof(T) / 20.0;
}

}  // namespace lipvae::LIPVAE_ISA
