#include "group_code.hpp"
#include "groups.hpp"
#include "isa_kernels.hpp"
#include "memory.hpp"
#include "networks.hpp"
#include "pairs.hpp"
#include "parallel.hpp"
#include "planes.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Runs the comparators in order; bits(c, mask) receives the lanes that comparator c swaps.
template <class T, int g, bool record, class Bits, std::size_t... c>
LIPVAE_INLINE void sort_network(typename Simd<T>::V* e, Bits&& bits, std::index_sequence<c...>) {
  auto compare = [&](auto index) {
    constexpr Comparator pair = Network<g>::comparators[decltype(index)::value];
    typename Simd<T>::Mask swapped;
    SortLanes<T>{swapped}(e[pair.low], e[pair.high]);
    if constexpr (record) bits(int(decltype(index)::value), swapped);
  };
  (compare(std::integral_constant<std::size_t, c>()), ...);
}

// Runs the comparators in reverse; swap(c, a, b) swaps the lanes again that comparator c swapped.
template <class T, int g, class Swap, std::size_t... c>
LIPVAE_INLINE void undo_network(typename Simd<T>::V* e, Swap&& swap, std::index_sequence<c...>) {
  auto undo = [&](auto index) {
    constexpr std::size_t back = Network<g>::size - 1 - decltype(index)::value;
    constexpr Comparator pair = Network<g>::comparators[back];
    swap(int(back), e[pair.low], e[pair.high]);
  };
  (undo(std::integral_constant<std::size_t, c>()), ...);
}

template <int g>
constexpr auto comparators = std::make_index_sequence<Network<g>::size>();

// What a forward or a backward pass does to one vector of each element of a group.
template <class T, int g, bool record>
struct Forward {
  static constexpr bool reads_code = false, writes_code = record;
  template <class Bits>
  static LIPVAE_INLINE void apply(typename Simd<T>::V* e, Bits bits) {
    using Mask = typename Simd<T>::Mask;
    sort_network<T, g, record>(e, [&](int c, Mask mask) { bits.put(c, mask); }, comparators<g>);
  }
};
template <class T, int g>
struct Backward {
  static constexpr bool reads_code = true, writes_code = false;
  template <class Bits>
  static LIPVAE_INLINE void apply(typename Simd<T>::V* e, Bits bits) {
    using V = typename Simd<T>::V;
    // Out of line, each of the 19 comparators of g = 8 would pass its vectors through memory.
    auto swap = [&](int c, V& a, V& b) __attribute__((always_inline)) { bits.swap(c, a, b); };
    undo_network<T, g>(e, swap, comparators<g>);
  }
};

// Runs `count` groups a vector at a time through load(e, first) and store(e, first). A last partial
// vector becomes a whole one that overlaps its neighbour; it is loaded first, so y may be x. Groups from
// `valid` on are padding.
template <class Pass, int g, class T, class Bits, class Load, class Store>
LIPVAE_INLINE void run_vectors(Bits* bits, int count, int valid, Load&& load, Store&& store) {
  constexpr int lanes = Simd<T>::lanes;
  typename Simd<T>::V e[g], last[g] = {};
  const bool partial = count % lanes != 0;
  if (partial) load(last, count - lanes);
  if constexpr (Pass::writes_code && g == 2) {
    auto writer = *bits;  // whose members would be read again after every store of bytes
    for (std::int64_t start = 0; start < count; start += word_bits) {
      const std::int64_t end = count - start < word_bits ? count : start + word_bits;
      std::uint64_t word = sort_word<T>(start, end, [&](std::int64_t i, typename Simd<T>::Mask& mask) {
        load(e, i);
        Pass::apply(e, PairMask<T>{&mask});
        store(e, i);
      });
      if (partial && end == count) {
        typename Simd<T>::Mask mask;
        Pass::apply(last, PairMask<T>{&mask});
        store(last, count - lanes);
        const std::uint64_t swaps = Simd<T>::movemask(mask);
        const int shift = int(count - lanes - start);  // below 0 if the vector begins in the word before
        word |= shift >= 0 ? swaps << shift : swaps >> -shift;
      }
      writer.put(word, int((end < valid ? end : valid) - start));
    }
    *bits = writer;
  } else {
    for (int i = 0; i + lanes <= count; i += lanes) {
      load(e, i);
      Pass::apply(e, vector_bits<T, true>(bits, i));
      store(e, i);
    }
    if (partial) {
      Pass::apply(last, vector_bits<T, false>(bits, count - lanes));
      store(last, count - lanes);
    }
  }
}

// Groups side by side (inner == 1), at most BitBuffer::capacity of them.
template <class Pass, int g, bool streaming, class T, class Bits>
LIPVAE_INLINE void run_groups(const T* x, T* y, Bits* bits, int count) {
  using V = typename Simd<T>::V;
  constexpr int lanes = Simd<T>::lanes;
  if constexpr (g == 2 && Pass::reads_code && has_pairs) {
    unsort_pairs<streaming>(x, y, count, *bits);
  } else if constexpr (g == 2 && Pass::writes_code && has_pairs) {
    auto writer = *bits;  // whose members would be read again after every store of bytes
    sort_pairs<streaming>(x, y, count, [&](std::uint64_t word, int pairs) { writer.put(word, pairs); });
    *bits = writer;
  } else if constexpr (g == 2 && has_pairs) {
    sort_pairs<streaming>(x, y, count, [](std::uint64_t, int) {});
  } else if (count >= lanes) {
    // Out of line, these would pass the vectors through memory.
    run_vectors<Pass, g, T>(
        bits, count, count,
        [&](V* e, std::int64_t i) __attribute__((always_inline)) {
          if constexpr (streaming) prefetch_ahead<g * vector_bytes>(x + i * g);
          load_groups<g>(x + i * g, e);
        },
        [&](V* e, std::int64_t i) __attribute__((always_inline)) { store_groups<g, streaming>(y + i * g, e); });
  } else {
    T padded[lanes * g] = {};  // padding does not swap
    __builtin_memcpy(padded, x, std::size_t(count) * g * sizeof(T));
    run_vectors<Pass, g, T>(
        bits, lanes, count, [&](V* e, int) { load_groups<g>(padded, e); },
        [&](V* e, int) { store_groups<g, false>(padded, e); });
    __builtin_memcpy(y, padded, std::size_t(count) * g * sizeof(T));
  }
}

// Part of one group whose elements are planes, `inner` apart in x and `stride` apart in y; `far` if y, too, has to
// come from memory.
template <class Pass, int g, bool far, class T, class Bits>
LIPVAE_INLINE void run_planes(const T* x, T* y, Bits* bits, std::int64_t inner, std::int64_t stride,
                              int count) {
  using S = Simd<T>;
  using V = typename S::V;
  if (count >= S::lanes) {
    run_vectors<Pass, g, T>(
        bits, count, count,
        [&](V* e, int i) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) {
            prefetch_ahead<vector_bytes>(x + j * inner + i);
            if constexpr (far) prefetch_ahead<vector_bytes>(y + j * stride + i);
            e[j] = S::load(x + j * inner + i);
          }
        },
        [&](V* e, int i) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) S::store(y + j * stride + i, e[j]);
        });
  } else {
    run_vectors<Pass, g, T>(
        bits, S::lanes, count,
        [&](V* e, int) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) e[j] = S::load_first(x + j * inner, count);
        },
        [&](V* e, int) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) S::store_first(y + j * stride, e[j], count);
        });
  }
}

template <class Pass, class T>
void run_pairs_of_planes(const T* x, T* y, std::int64_t pairs, std::int64_t inner, std::uint8_t* code,
                         const std::uint8_t* end, bool far) {
  if constexpr (Pass::writes_code)
    far ? sort_planes<true>(x, y, pairs, inner, code) : sort_planes<false>(x, y, pairs, inner, code);
  else
    far ? unsort_planes<true>(x, y, pairs, inner, code, end) : unsort_planes<false>(x, y, pairs, inner, code, end);
}

// A part of the first cache.
constexpr std::int64_t buffer_bytes = 16 * 1024;

struct Layout {
  const void* x;
  void* y;
  std::uint8_t* code;
  std::int64_t outer, n, inner;
  int threads;
  std::int64_t code_stride;
};

template <class Pass, int g, class T>
void run(const Layout& a) {
  constexpr bool has_code = Pass::reads_code || Pass::writes_code;
  std::int64_t rows = a.outer, groups = a.n / g;
  if (rows * groups * a.inner == 0) return;
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const double bytes = double(rows) * double(a.n) * double(a.inner) * sizeof(T);
  // Rows that meet at whole bytes of code are one; chunks of it then go to the threads.
  if (a.inner == 1 && (groups % 8 == 0 || !has_code)) {
    groups *= rows;
    rows = 1;
  }
  if (a.inner % 8 == 0) {
    rows *= groups;
    groups = 1;
  }
  const std::int64_t row_bytes = (groups * a.inner + 7) / 8;
  const std::int64_t stride = a.code_stride ? a.code_stride : rows * row_bytes;
  if (a.inner == 1) {
    constexpr std::int64_t chunk = BitBuffer::capacity;
    const std::int64_t chunks = (groups + chunk - 1) / chunk;
    const bool streaming =
        x != y && streams(y, bytes, vector_bytes) && groups * g * sizeof(T) % vector_bytes == 0;
    parallel_for(rows * chunks, 2.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i / chunks, first = i % chunks * chunk;
        const int count = int(groups - first < chunk ? groups - first : chunk);
        const std::int64_t offset = (row * groups + first) * g;
        // A chunk begins at a whole byte of the code.
        RowBits<Pass, g> row_bits(has_code ? a.code + row * row_bytes + first / 8 : nullptr,
                                  row_bytes - first / 8, stride, streaming);
        row_bits.with(0, count, [&](auto* bits) {
          if (streaming && count % Simd<T>::lanes == 0)  // others overlap, off the lines
            run_groups<Pass, g, true>(x + offset, y + offset, bits, count);
          else
            run_groups<Pass, g, false>(x + offset, y + offset, bits, count);
        });
        row_bits.finish();
      }
      if (streaming) stream_fence();
    });
    return;
  }
  // Where a vector is a line, those of planes that are no whole lines lie across two, and go through a buffer if
  // these are slow to store.
  constexpr std::int64_t line = 64 / sizeof(T);
  const std::int64_t padded = (a.inner + line - 1) / line * line;
  const bool buffered = vector_bytes == 64 && split_stores_are_slow() && a.inner % line != 0 && a.inner >= line &&
                        g * padded * sizeof(T) <= buffer_bytes;
  const std::int64_t plane_stride = buffered ? padded : a.inner;
  const bool far = !buffered && streams(y, bytes, 1);
  parallel_for(rows, 2.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) T buffer[buffer_bytes / sizeof(T)];
    const T* from = x + begin * groups * g * a.inner;
    T* to = y + begin * groups * g * a.inner;
    for (std::int64_t row = begin; row < end; ++row) {
      if constexpr (g == 2 && has_code) {
        if (!buffered && a.inner >= Simd<T>::lanes) {
          std::uint8_t* const code = a.code + row * row_bytes;
          run_pairs_of_planes<Pass>(from, to, groups, a.inner, code, a.code + rows * row_bytes, far);
          from += groups * g * a.inner;
          to += groups * g * a.inner;
          continue;
        }
      }
      RowBits<Pass, g> row_bits(has_code ? a.code + row * row_bytes : nullptr, row_bytes, stride, false);
      for (std::int64_t group = 0; group < groups; ++group) {
        for (std::int64_t first = 0; first < a.inner; first += BitBuffer::capacity) {
          const std::int64_t left = a.inner - first;
          const int count = int(left < BitBuffer::capacity ? left : BitBuffer::capacity);
          row_bits.with(group * a.inner + first, count, [&](auto* bits) {
            T* const y_part = (buffered ? buffer : to) + first;
            if (far)
              run_planes<Pass, g, true>(from + first, y_part, bits, a.inner, plane_stride, count);
            else
              run_planes<Pass, g, false>(from + first, y_part, bits, a.inner, plane_stride, count);
          });
        }
        if (buffered)
          for (int j = 0; j < g; ++j)
            __builtin_memcpy(to + j * a.inner, buffer + j * plane_stride, std::size_t(a.inner) * sizeof(T));
        from += g * a.inner;
        to += g * a.inner;
      }
      row_bits.finish();
    }
  });
}

template <class T, int g>
void forward(const GroupSort& a) {
  const Layout layout{a.x, a.y, a.code, a.outer, a.n, a.inner, a.threads, a.code_stride};
  if (a.code)
    run<Forward<T, g, true>, g, T>(layout);
  else
    run<Forward<T, g, false>, g, T>(layout);
}

template <class T>
void forward(const GroupSort& a) {
  if (a.group_size == 2) forward<T, 2>(a);
  if (a.group_size == 4) forward<T, 4>(a);
  if (a.group_size == 8) forward<T, 8>(a);
}

template <class T>
void backward(const GroupSortBackward& a) {
  // Only read: Backward::writes_code is false.
  std::uint8_t* code = const_cast<std::uint8_t*>(a.code);
  const Layout layout{a.grad_y, a.grad_x, code, a.outer, a.n, a.inner, a.threads, 0};
  if (a.group_size == 2) run<Backward<T, 2>, 2, T>(layout);
  if (a.group_size == 4) run<Backward<T, 4>, 4, T>(layout);
  if (a.group_size == 8) run<Backward<T, 8>, 8, T>(layout);
}

}  // namespace

void group_sort(const GroupSort& a) {
  if (a.dtype == DType::float32)
    forward<float>(a);
  else
    forward<double>(a);
}

void group_sort_backward(const GroupSortBackward& a) {
  if (a.dtype == DType::float32)
    backward<float>(a);
  else
    backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
