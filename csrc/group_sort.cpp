#include "group_bits.hpp"
#include "groups.hpp"
#include "isa_kernels.hpp"
#include "networks.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Runs the comparators in order; bits(c, mask) receives the swaps of comparator c.
template <class T, int g, bool record, class Bits, std::size_t... c>
LIPVAE_INLINE void sort_network(typename Simd<T>::V* e, Bits&& bits, std::index_sequence<c...>) {
  using S = Simd<T>;
  auto compare = [&](auto index) {
    constexpr Comparator pair = Network<g>::comparators[decltype(index)::value];
    const typename S::V low = e[pair.low], high = e[pair.high];
    if constexpr (record) bits(int(decltype(index)::value), S::movemask(low > high));
    e[pair.low] = S::min(high, low);
    e[pair.high] = S::max(low, high);
  };
  (compare(std::integral_constant<std::size_t, c>()), ...);
}

// Runs the comparators in reverse; bits(c) says which lanes comparator c swapped.
template <class T, int g, class Bits, std::size_t... c>
LIPVAE_INLINE void undo_network(typename Simd<T>::V* e, Bits&& bits, std::index_sequence<c...>) {
  auto swap = [&](auto index) {
    constexpr std::size_t back = Network<g>::size - 1 - decltype(index)::value;
    constexpr Comparator pair = Network<g>::comparators[back];
    Simd<T>::swap_where(bits(int(back)), e[pair.low], e[pair.high]);
  };
  (swap(std::integral_constant<std::size_t, c>()), ...);
}

template <int g>
constexpr auto comparators = std::make_index_sequence<Network<g>::size>();

// What a forward or a backward pass does to one vector of each element of a group.
template <class T, int g, bool record>
struct Forward {
  static constexpr bool reads_code = false, writes_code = record;
  template <class Bits>
  static LIPVAE_INLINE void apply(typename Simd<T>::V* e, Bits bits) {
    sort_network<T, g, record>(e, [&](int c, unsigned mask) { bits.put(c, mask); }, comparators<g>);
  }
};
template <class T, int g>
struct Backward {
  static constexpr bool reads_code = true, writes_code = false;
  template <class Bits>
  static LIPVAE_INLINE void apply(typename Simd<T>::V* e, Bits bits) {
    undo_network<T, g>(e, [&](int c) { return bits.get(c); }, comparators<g>);
  }
};

// The bits of one vector of groups, in a buffer for each comparator. Vectors come in order; only the
// last may start inside a byte (aligned == false).
template <class T, bool aligned>
struct VectorBits {
  BitBuffer* buffer;
  int first;  // group
  LIPVAE_INLINE void put(int c, unsigned mask) const {
    constexpr int lanes = Simd<T>::lanes;
    std::uint8_t* p = buffer[c].bytes + first / 8;
    if constexpr (aligned && lanes >= 8) {
      __builtin_memcpy(p, &mask, lanes / 8);  // little-endian
    } else {
      unsigned bits = 0;
      __builtin_memcpy(&bits, p, 4);
      bits = (bits & ((1u << first % 8) - 1u)) | mask << first % 8;
      __builtin_memcpy(p, &bits, 4);
    }
  }
  LIPVAE_INLINE typename Simd<T>::Int get(int c) const {
    typename Simd<T>::Int bits;
    __builtin_memcpy(&bits, buffer[c].bytes + first / 8, sizeof bits);
    return aligned && Simd<T>::lanes >= 8 ? bits : bits >> first % 8;
  }
};

// The bits of the one comparator of pairs, gathered in a register: a word read from bytes that were
// just stored would wait for the last of them to leave the core.
struct WordBits {
  std::uint64_t* word;
  int shift;  // below 0 for a vector that begins in the word before
  LIPVAE_INLINE void put(int, unsigned mask) const {
    *word |= shift >= 0 ? std::uint64_t(mask) << shift : std::uint64_t(mask) >> -shift;
  }
};

// Applies body to the bits of `count` groups, at the bit `position` of each comparator's code.
template <class Pass, int g, class Body>
LIPVAE_INLINE void with_bits(std::uint8_t* code, std::int64_t stride, std::int64_t position, int count,
                             Body&& body) {
  BitBuffer buffer[Network<g>::size];
  if constexpr (Pass::reads_code)
    for (int c = 0; c < Network<g>::size; ++c) extract_bits(code + c * stride, position, count, buffer[c]);
  body(buffer);
  if constexpr (Pass::writes_code)
    for (int c = 0; c < Network<g>::size; ++c) append_bits(code + c * stride, position, count, buffer[c]);
}

// Runs `count` groups a vector at a time through load(e, first) and store(e, first). A last partial
// vector becomes a whole one that overlaps its neighbour; it is loaded first, so y may be x.
template <class Pass, int g, class T, class Load, class Store>
LIPVAE_INLINE void run_vectors(BitBuffer* buffer, int count, Load&& load, Store&& store) {
  constexpr int lanes = Simd<T>::lanes;
  typename Simd<T>::V e[g], last[g] = {};
  const bool partial = count % lanes != 0;
  if (partial) load(last, count - lanes);
  if constexpr (Pass::writes_code && g == 2) {
    for (int start = 0; start < count; start += 64) {
      const int end = count - start < 64 ? count : start + 64;
      std::uint64_t word = 0;
      auto add = [&](int i) {
        load(e, i);
        Pass::apply(e, WordBits{&word, i - start});
        store(e, i);
      };
      int i = start;
      if (end - start == 64) {
#pragma GCC unroll 8
        for (; i < start + 64; i += lanes) add(i);
      } else {
        for (; i + lanes <= end; i += lanes) add(i);
      }
      if (partial && end == count) {
        Pass::apply(last, WordBits{&word, count - lanes - start});
        store(last, count - lanes);
      }
      __builtin_memcpy(buffer[0].bytes + start / 8, &word, 8);
    }
    return;
  }
  for (int i = 0; i + lanes <= count; i += lanes) {
    load(e, i);
    Pass::apply(e, VectorBits<T, true>{buffer, i});
    store(e, i);
  }
  if (partial) {
    Pass::apply(last, VectorBits<T, false>{buffer, count - lanes});
    store(last, count - lanes);
  }
}

// Groups side by side (inner == 1), at most BitBuffer::capacity of them.
template <class Pass, int g, bool streaming, class T>
LIPVAE_INLINE void run_groups(const T* x, T* y, BitBuffer* buffer, int count) {
  using V = typename Simd<T>::V;
  constexpr int lanes = Simd<T>::lanes;
  if (count >= lanes) {
    run_vectors<Pass, g, T>(
        buffer, count, [&](V* e, int i) { load_groups<g>(x + i * g, e); },
        [&](V* e, int i) { store_groups<g, streaming>(y + i * g, e); });
  } else {
    T padded[lanes * g] = {};  // padding does not swap
    __builtin_memcpy(padded, x, std::size_t(count) * g * sizeof(T));
    run_vectors<Pass, g, T>(
        buffer, lanes, [&](V* e, int) { load_groups<g>(padded, e); },
        [&](V* e, int) { store_groups<g, false>(padded, e); });
    __builtin_memcpy(y, padded, std::size_t(count) * g * sizeof(T));
  }
}

// Part of one group whose elements are planes `inner` apart.
template <class Pass, int g, class T>
LIPVAE_INLINE void run_planes(const T* x, T* y, BitBuffer* buffer, std::int64_t inner, int count) {
  using S = Simd<T>;
  using V = typename S::V;
  if (count >= S::lanes) {
    run_vectors<Pass, g, T>(
        buffer, count,
        [&](V* e, int i) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) e[j] = S::load(x + j * inner + i);
        },
        [&](V* e, int i) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) S::store(y + j * inner + i, e[j]);
        });
  } else {
    run_vectors<Pass, g, T>(
        buffer, S::lanes,
        [&](V* e, int) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) e[j] = S::load_first(x + j * inner, count);
        },
        [&](V* e, int) {
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) S::store_first(y + j * inner, e[j], count);
        });
  }
}

struct Layout {
  const void* x;
  void* y;
  std::uint8_t* code;
  std::int64_t outer, n, inner;
  int threads;
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
  const std::int64_t row_bytes = (groups * a.inner + 7) / 8, stride = rows * row_bytes;
  if (a.inner == 1) {
    constexpr std::int64_t chunk = BitBuffer::capacity;
    const std::int64_t chunks = (groups + chunk - 1) / chunk;
    const bool streaming = x != y && streams(y, bytes, 16) && groups * g * sizeof(T) % 16 == 0;
    parallel_for(rows * chunks, 2.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i / chunks, first = i % chunks * chunk;
        const int count = int(groups - first < chunk ? groups - first : chunk);
        const std::int64_t offset = (row * groups + first) * g;
        std::uint8_t* code = has_code ? a.code + row * row_bytes : nullptr;
        with_bits<Pass, g>(code, stride, first, count, [&](BitBuffer* buffer) {
          if (streaming)
            run_groups<Pass, g, true>(x + offset, y + offset, buffer, count);
          else
            run_groups<Pass, g, false>(x + offset, y + offset, buffer, count);
        });
      }
      if (streaming) stream_fence();
    });
    return;
  }
  parallel_for(rows, 2.0 * bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * groups; i < end * groups; ++i) {
      const std::int64_t row = i / groups, group = i % groups, offset = i * g * a.inner;
      std::uint8_t* code = has_code ? a.code + row * row_bytes : nullptr;
      for (std::int64_t first = 0; first < a.inner; first += BitBuffer::capacity) {
        const std::int64_t left = a.inner - first;
        const int count = int(left < BitBuffer::capacity ? left : BitBuffer::capacity);
        with_bits<Pass, g>(code, stride, group * a.inner + first, count, [&](BitBuffer* buffer) {
          run_planes<Pass, g>(x + offset + first, y + offset + first, buffer, a.inner, count);
        });
      }
    }
  });
}

template <class T, int g>
void forward(const GroupSort& a) {
  const Layout layout{a.x, a.y, a.code, a.outer, a.n, a.inner, a.threads};
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
  const Layout layout{a.grad_y, a.grad_x, code, a.outer, a.n, a.inner, a.threads};
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
