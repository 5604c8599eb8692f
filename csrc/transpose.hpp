#pragma once

#include "groups.hpp"

namespace lipvae::LIPVAE_ISA {

// to[i * to_stride + r] = from[r * from_stride + i]. A line of several rows at a time: rows a power of two
// apart share few places in a cache.
template <class T>
void transpose(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, T* to,
               std::int64_t to_stride) {
  using S = Simd<T>;
  constexpr int steps = S::block_lanes, line = 64 / int(sizeof(T));
  const std::int64_t whole_rows = rows / S::lanes * S::lanes, whole_columns = columns / line * line;
  for (std::int64_t i = 0; i < whole_columns; i += line)
    for (std::int64_t r = 0; r < whole_rows; r += S::lanes)
#pragma GCC unroll 4
      for (std::int64_t step = i; step < i + line; step += steps) {
        typename S::V e[steps];
#pragma GCC unroll 4
        for (int j = 0; j < steps; ++j)
          e[j] = load_blocks(from + (r + j) * from_stride + step, steps * from_stride);
        transpose_blocks<T>(e);
#pragma GCC unroll 4
        for (int j = 0; j < steps; ++j) S::store(to + (step + j) * to_stride + r, e[j]);
      }
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = r < whole_rows ? whole_columns : 0; i < columns; ++i)
      to[i * to_stride + r] = from[r * from_stride + i];
}

}  // namespace lipvae::LIPVAE_ISA
