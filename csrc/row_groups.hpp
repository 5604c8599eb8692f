#pragma once

#include <cstdint>

#include "isa_kernels.hpp"

namespace lipvae::LIPVAE_ISA {

// Rows in groups that lie apart in memory: how many, and where.
struct RowCounts {
  std::int64_t groups, rows;  // of a group
  std::int64_t strips(std::int64_t most) const { return groups * ((rows + most - 1) / most); }
};
template <class T>
struct RowPlaces {
  T* first;
  std::int64_t stride, group_stride;
  T* at(std::int64_t group, std::int64_t row) const { return first + group * group_stride + row * stride; }
};

// Rows as threads share them. Units are `together` neighbours that are alike, if these are few and units are
// enough for all threads; otherwise as many rows as a strip, of which the last unit may have fewer.
struct RowUnits {
  std::int64_t rows, size, count;
  bool whole;

  RowUnits(std::int64_t total, std::int64_t together, std::int64_t strip, int threads)
      : rows(total), whole(together >= strip / 2 && together <= 64 && total >= together * threads) {
    size = whole ? together : strip;
    count = (rows + size - 1) / size;
  }
  std::int64_t end(std::int64_t unit) const { return unit * size < rows ? unit * size : rows; }
  // `some` rows from the start of a unit to the end of one.
  RowCounts counts(std::int64_t some) const {
    return whole ? RowCounts{some / size, size} : RowCounts{1, some};
  }
};

// Calls body(group, row, height) for strips of at most `most` rows of a group, of like heights: one or two
// rows alone would wait for their own sums.
template <class Body>
void for_each_strip(RowCounts a, std::int64_t most, Body&& body) {
  const std::int64_t strips = (a.rows + most - 1) / most;
  for (std::int64_t group = 0; group < a.groups; ++group) {
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < strips; ++i) {
      const std::int64_t height = a.rows / strips + (i < a.rows % strips);
      body(group, row, height);
      row += height;
    }
  }
}

}  // namespace lipvae::LIPVAE_ISA
