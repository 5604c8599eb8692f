// What the kernel tests share: random data in buffers without slack, and a count of failures.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "memory.hpp"

namespace lipvae::testing {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

template <class T>
constexpr DType dtype = sizeof(T) == 4 ? DType::float32 : DType::float64;
template <class T>
constexpr double epsilon = std::numeric_limits<T>::epsilon();

// Its last element ends the allocation, so AddressSanitizer sees a read or write beyond it; its first
// lies one element past an aligned address.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size) : size_(size), memory_(new T[std::size_t(size) + 1]()) {}
  Buffer(const Buffer& other) : Buffer(other.size_) { std::memcpy(data(), other.data(), bytes()); }
  T* data() { return memory_.get() + 1; }
  const T* data() const { return memory_.get() + 1; }
  T& operator[](std::int64_t i) { return data()[i]; }
  const T& operator[](std::int64_t i) const { return data()[i]; }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return std::size_t(size_) * sizeof(T); }
  bool same_bits(const Buffer& other) const { return std::memcmp(data(), other.data(), bytes()) == 0; }

 private:
  std::int64_t size_;
  std::unique_ptr<T[]> memory_;
};

// Begins at a cache line, as what streams has to.
template <class T>
class Lines {
 public:
  explicit Lines(std::int64_t size)
      : memory_(new (std::align_val_t(64)) T[std::size_t(size)]()) {}
  Lines(const Lines&) = delete;
  ~Lines() { operator delete[](memory_, std::align_val_t(64)); }
  T* data() const { return memory_; }
  bool same_bits(const Buffer<T>& other) const { return std::memcmp(memory_, other.data(), other.bytes()) == 0; }

 private:
  T* memory_;
};

constexpr std::uint64_t seed = 20230609;
inline std::mt19937_64& generator() {
  static std::mt19937_64 engine(seed);
  return engine;
}
inline double normal() { return std::normal_distribution<double>()(generator()); }
inline double uniform() { return std::uniform_real_distribution<double>()(generator()); }

template <class T>
Buffer<T> normals(std::int64_t size, double scale = 1.0) {
  Buffer<T> buffer(size);
  for (std::int64_t i = 0; i < size; ++i) buffer[i] = T(scale * normal());
  return buffer;
}

// Grey levels of 8 bits.
template <class T>
Buffer<T> pixels(std::int64_t size) {
  Buffer<T> buffer(size);
  for (std::int64_t i = 0; i < size; ++i) buffer[i] = T(std::floor(uniform() * 256.0) / 255.0);
  return buffer;
}

// "avx2 float64 l1_ball 3x7"
template <class T, class... Size>
std::string describe(const KernelTable& kernels, const char* op, Size... sizes) {
  std::string text = std::string(kernels.isa) + (sizeof(T) == 4 ? " float32 " : " float64 ") + op;
  ((text += " " + std::to_string(sizes)), ...);
  return text;
}

void test_l1_ball(const KernelTable&);
void test_group_sort(const KernelTable&);
void test_importance(const KernelTable&);
void test_linear(const KernelTable&);
void test_conv_transpose(const KernelTable&);
void test_lipschitz_linear(const KernelTable&);
void test_importance_statistics(const KernelTable&);
void test_vmf(const KernelTable&);

}  // namespace lipvae::testing
