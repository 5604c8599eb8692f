#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "isa_kernels.hpp"

namespace lipvae::LIPVAE_ISA {

// Memory without a value, from the start of a cache line on.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes) : memory_(operator new(std::size_t(bytes), std::align_val_t(64))) {}
  ~Scratch() { operator delete(memory_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_;
};

}  // namespace lipvae::LIPVAE_ISA
