// Moves groups of g neighbours between memory and registers: e[i] holds element i of as many groups
// as a vector has lanes, in order. Works in 16-byte blocks, since wider shuffles cost more, except with
// AVX-512, which picks lanes from two vectors by one instruction.
#pragma once

#include <type_traits>
#include <utility>

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

// Pattern::at(i) in [0, 2 n_block) picks, inside each block, from the lanes of a and then of b.
template <class T, class Pattern, std::size_t... lane>
LIPVAE_INLINE typename Simd<T>::V shuffle_blocks(typename Simd<T>::V a, typename Simd<T>::V b,
                                                 std::index_sequence<lane...>) {
  using S = Simd<T>;
  constexpr auto source = [](int i) {
    const int block = i / S::block_lanes, pick = Pattern::at(i % S::block_lanes);
    return block * S::block_lanes + pick % S::block_lanes + (pick < S::block_lanes ? 0 : S::lanes);
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, source(int(lane))...);
#else
  return __builtin_shuffle(a, b, typename S::I{typename S::Int(source(int(lane)))...});
#endif
}
template <class T, class Pattern>
LIPVAE_INLINE typename Simd<T>::V shuffle_blocks(typename Simd<T>::V a, typename Simd<T>::V b) {
  return shuffle_blocks<T, Pattern>(a, b, std::make_index_sequence<Simd<T>::lanes>());
}

template <int n>
struct InterleaveLow {
  static constexpr int at(int i) { return i / 2 + (i % 2) * n; }
};
template <int n>
struct InterleaveHigh {
  static constexpr int at(int i) { return n / 2 + i / 2 + (i % 2) * n; }
};
struct Even {
  static constexpr int at(int i) { return 2 * i; }
};
struct Odd {
  static constexpr int at(int i) { return 2 * i + 1; }
};

template <class T>
LIPVAE_INLINE typename Simd<T>::V interleave_low(typename Simd<T>::V a, typename Simd<T>::V b) {
  return shuffle_blocks<T, InterleaveLow<Simd<T>::block_lanes>>(a, b);
}
template <class T>
LIPVAE_INLINE typename Simd<T>::V interleave_high(typename Simd<T>::V a, typename Simd<T>::V b) {
  return shuffle_blocks<T, InterleaveHigh<Simd<T>::block_lanes>>(a, b);
}

// Block k of the vector is at p + k * stride.
template <class T>
LIPVAE_INLINE typename Simd<T>::V load_blocks(const T* p, std::int64_t stride) {
  using V = typename Simd<T>::V;
#if defined(__SSE2__)
  auto block = [&](int k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + k * stride)); };
#endif
#if defined(__AVX512F__)
  __m512i v = _mm512_castsi128_si512(block(0));
  v = _mm512_inserti32x4(v, block(1), 1);
  v = _mm512_inserti32x4(v, block(2), 2);
  return (V)_mm512_inserti32x4(v, block(3), 3);
#elif defined(__AVX2__)
  return (V)_mm256_inserti128_si256(_mm256_castsi128_si256(block(0)), block(1), 1);
#elif defined(__SSE2__)
  (void)stride;
  return (V)block(0);
#else
  (void)stride;
  return Simd<T>::load(p);
#endif
}
template <bool streaming, class T>
LIPVAE_INLINE void store_blocks(T* p, std::int64_t stride, typename Simd<T>::V v) {
#if defined(__SSE2__)
  auto store = [&](int k, __m128i block) {
    __m128i* address = reinterpret_cast<__m128i*>(p + k * stride);
    if constexpr (streaming)
      _mm_stream_si128(address, block);
    else
      _mm_storeu_si128(address, block);
  };
#endif
#if defined(__AVX2__)
  store(0, _mm256_castsi256_si128((__m256i)v));
  store(1, _mm256_extracti128_si256((__m256i)v, 1));
#elif defined(__SSE2__)
  (void)stride;
  store(0, (__m128i)v);
#else
  (void)stride;
  Simd<T>::store(p, v);
#endif
}

// In each block, lane j of e[i] becomes lane i of e[j]: a transpose, its own inverse.
template <class T>
LIPVAE_INLINE void transpose_blocks(typename Simd<T>::V* e) {
  using V = typename Simd<T>::V;
  if constexpr (sizeof(T) == 8) {
    const V low = interleave_low<T>(e[0], e[1]);
    e[1] = interleave_high<T>(e[0], e[1]);
    e[0] = low;
  } else {
    using D = typename Simd<double>::V;
    const D a = (D)interleave_low<T>(e[0], e[1]), b = (D)interleave_high<T>(e[0], e[1]);
    const D c = (D)interleave_low<T>(e[2], e[3]), d = (D)interleave_high<T>(e[2], e[3]);
    e[0] = (V)interleave_low<double>(a, c);
    e[1] = (V)interleave_high<double>(a, c);
    e[2] = (V)interleave_low<double>(b, d);
    e[3] = (V)interleave_high<double>(b, d);
  }
}

// load_groups for groups of at least a block.
template <int g, class T>
LIPVAE_INLINE void load_by_blocks(const T* p, typename Simd<T>::V* e) {
  constexpr int b = Simd<T>::block_lanes;
#pragma GCC unroll 4
  for (int part = 0; part < g; part += b) {
#pragma GCC unroll 4
    for (int j = 0; j < b; ++j) e[part + j] = load_blocks(p + j * g + part, b * g);
    transpose_blocks<T>(e + part);
  }
}

#if defined(__AVX512F__)
// Lane i of the result is lane at(i) of a and b, one after the other.
template <class T, class Pattern>
LIPVAE_INLINE typename Simd<T>::V pick_lanes(typename Simd<T>::V a, typename Simd<T>::V b) {
  using S = Simd<T>;
  typename S::I index{};
  for (int i = 0; i < S::lanes; ++i) index[i] = Pattern::at(i);
  if constexpr (sizeof(T) == 4)
    return (typename S::V)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
  else
    return (typename S::V)_mm512_permutex2var_pd((__m512d)a, (__m512i)index, (__m512d)b);
}

// g vectors as memory has them hold lanes / g groups each. A stage takes two vectors of `groups` groups
// each and returns one with the lower half of their elements and one with the upper half; an element's
// groups are side by side, but in memory a group's elements are. After log2(g) stages each vector is one
// element of all groups.
template <int lanes, int g, int groups, int half>
struct Gather {
  static constexpr int elements = lanes / groups;
  static constexpr int at(int i) {
    const int element = i / (2 * groups) + half * elements / 2, group = i % (2 * groups);
    const int within = group % groups;
    return group / groups * lanes + (elements == g ? within * g + element : element * groups + within);
  }
};
// And back: the vector of the first or of the second `groups` groups.
template <int lanes, int g, int groups, int second>
struct Scatter {
  static constexpr int elements = lanes / groups;
  static constexpr int at(int i) {
    const int element = elements == g ? i % g : i / groups;
    const int group = (elements == g ? i / g : i % groups) + second * groups;
    return element / (elements / 2) * lanes + element % (elements / 2) * 2 * groups + group;
  }
};

// One stage, of vectors that hold an element in `blocks` of g; or back.
template <int g, int blocks, bool back, class T>
LIPVAE_INLINE void exchange_groups(typename Simd<T>::V* e) {
  constexpr int lanes = Simd<T>::lanes, groups = lanes / g * blocks;
  using First = std::conditional_t<back, Scatter<lanes, g, groups, 0>, Gather<lanes, g, groups, 0>>;
  using Second = std::conditional_t<back, Scatter<lanes, g, groups, 1>, Gather<lanes, g, groups, 1>>;
  typename Simd<T>::V to[g];
#pragma GCC unroll 4
  for (int pair = 0; pair < g / (2 * blocks); ++pair)
#pragma GCC unroll 4
    for (int block = 0; block < blocks; ++block) {
      const int apart = 2 * pair * blocks + block, together = 2 * (pair * blocks + block);
      const int from = back ? together : apart, from_step = back ? 1 : blocks;
      const int at = back ? apart : together, at_step = back ? blocks : 1;
      to[at] = pick_lanes<T, First>(e[from], e[from + from_step]);
      to[at + at_step] = pick_lanes<T, Second>(e[from], e[from + from_step]);
    }
#pragma GCC unroll 8
  for (int i = 0; i < g; ++i) e[i] = to[i];
}
template <int g, class T, int blocks = 1>
LIPVAE_INLINE void gather_groups(typename Simd<T>::V* e) {
  exchange_groups<g, blocks, false, T>(e);
  if constexpr (2 * blocks < g) gather_groups<g, T, 2 * blocks>(e);
}
template <int g, class T, int blocks = 1>
LIPVAE_INLINE void scatter_groups(typename Simd<T>::V* e) {
  if constexpr (2 * blocks < g) scatter_groups<g, T, 2 * blocks>(e);
  exchange_groups<g, blocks, true, T>(e);
}

// Two groups of 8 floats are four blocks of a vector. When the blocks of four vectors are transposed, block
// 2 j + half of vector i holds element 4 half + i of their groups 2 lane + j.
template <int half>
struct GatherHalves {
  static constexpr int at(int group) { return group / 8 * 16 + (group % 2 * 2 + half) * 4 + group % 8 / 2; }
};
template <int second>
struct ScatterHalves {
  static constexpr int at(int i) { return i / 4 % 2 * 16 + second * 8 + i % 4 * 2 + i / 8; }
};
template <bool back, class T>
LIPVAE_INLINE void exchange_halves(typename Simd<T>::V* e) {
  using First = std::conditional_t<back, ScatterHalves<0>, GatherHalves<0>>;
  using Second = std::conditional_t<back, ScatterHalves<1>, GatherHalves<1>>;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const typename Simd<T>::V low = e[i], high = e[4 + i];
    e[i] = pick_lanes<T, First>(low, high);
    e[4 + i] = pick_lanes<T, Second>(low, high);
  }
}

// On a Zen 5 shuffles inside 16-byte blocks go to four ports, others to two.
template <int g, class T>
LIPVAE_INLINE void load_groups(const T* p, typename Simd<T>::V* e) {
  using S = Simd<T>;
  if constexpr (g == 8 && sizeof(T) == 8) return load_by_blocks<g>(p, e);
#pragma GCC unroll 8
  for (int i = 0; i < g; ++i) e[i] = S::load(p + i * S::lanes);
  if constexpr (g == 8 && sizeof(T) == 4) {
    transpose_blocks<T>(e);
    transpose_blocks<T>(e + 4);
    exchange_halves<false, T>(e);
  } else {
    gather_groups<g, T>(e);
  }
}
template <int g, bool streaming, class T>
LIPVAE_INLINE void store_groups(T* p, typename Simd<T>::V* e) {
  using S = Simd<T>;
  if constexpr (g == 8 && sizeof(T) == 4) {
    exchange_halves<true, T>(e);
    transpose_blocks<T>(e);
    transpose_blocks<T>(e + 4);
  } else {
    scatter_groups<g, T>(e);
  }
#pragma GCC unroll 8
  for (int i = 0; i < g; ++i) {
    if constexpr (streaming)
      S::stream(p + i * S::lanes, e[i]);
    else
      S::store(p + i * S::lanes, e[i]);
  }
}
#else
template <int g, class T>
LIPVAE_INLINE void load_groups(const T* p, typename Simd<T>::V* e) {
  constexpr int b = Simd<T>::block_lanes;
  if constexpr (g < b) {
    const auto first = load_blocks(p, 2 * b), second = load_blocks(p + b, 2 * b);
    e[0] = shuffle_blocks<T, Even>(first, second);
    e[1] = shuffle_blocks<T, Odd>(first, second);
  } else {
    load_by_blocks<g>(p, e);
  }
}
template <int g, bool streaming, class T>
LIPVAE_INLINE void store_groups(T* p, typename Simd<T>::V* e) {
  constexpr int b = Simd<T>::block_lanes;
  if constexpr (g < b) {
    store_blocks<streaming>(p, 2 * b, interleave_low<T>(e[0], e[1]));
    store_blocks<streaming>(p + b, 2 * b, interleave_high<T>(e[0], e[1]));
  } else {
#pragma GCC unroll 4
    for (int part = 0; part < g; part += b) {
      transpose_blocks<T>(e + part);
#pragma GCC unroll 4
      for (int j = 0; j < b; ++j) store_blocks<streaming>(p + j * g + part, b * g, e[part + j]);
    }
  }
}
#endif

}  // namespace lipvae::LIPVAE_ISA

