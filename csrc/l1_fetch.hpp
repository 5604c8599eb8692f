// How the search asks for the rows that come next while it works on those before, which start() names; past the
// end of the matrix it asks in vain. Both are told of passes: line() with every few vectors of one, half(r, 0) and
// half(r, 1) after the first and the last over row r of those worked on, rest() at their end.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace lipvae::LIPVAE_ISA {

// Half a row at once. For matrices that a cache holds: its lines are there before the next pass ends.
class FetchHalves {
 public:
  explicit FetchHalves(bool wanted) : wanted_(wanted) {}
  template <class T>
  void start(const T* rows, std::int64_t cols, int count) {
    const std::uintptr_t bytes = std::uintptr_t(cols) * sizeof(T);
    begin_ = reinterpret_cast<std::uintptr_t>(rows) + std::uintptr_t(count) * bytes;
    half_ = bytes / 2;
  }
  void half(int row, int which) const {
    if (!wanted_) return;
    const std::uintptr_t begin = begin_ + std::uintptr_t(2 * row + which) * half_;
    for (std::uintptr_t offset = 0; offset < half_; offset += 64)
      __builtin_prefetch(reinterpret_cast<const void*>(begin + offset));
  }
  LIPVAE_INLINE void line() const {}
  void rest() const {}

 private:
  bool wanted_;
  std::uintptr_t begin_ = 0, half_ = 0;
};

// A line at a time. From memory, half a row at once would wait for itself, and the next pass for it.
class FetchLines {
 public:
  template <class T>
  void start(const T* rows, std::int64_t cols, int count) {
    const std::uintptr_t bytes = std::uintptr_t(count) * std::uintptr_t(cols) * sizeof(T);
    at_ = reinterpret_cast<std::uintptr_t>(rows) + bytes;
    end_ = at_ + bytes;
  }
  void half(int, int) const {}
  LIPVAE_INLINE void line() {
    if (at_ >= end_) return;
    __builtin_prefetch(reinterpret_cast<const void*>(at_));
    at_ += 64;
  }
  void rest() {
    while (at_ < end_) line();
  }

 private:
  std::uintptr_t at_ = 0, end_ = 0;
};

}  // namespace lipvae::LIPVAE_ISA
