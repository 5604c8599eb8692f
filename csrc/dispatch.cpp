#include "dispatch.hpp"

#include <atomic>
#include <cstring>

namespace lipvae {

#ifdef LIPVAE_HAVE_BASELINE
namespace baseline { extern const KernelTable kernel_table; }
#endif
#ifdef LIPVAE_HAVE_AVX2
namespace avx2 { extern const KernelTable kernel_table; }
#endif
#ifdef LIPVAE_HAVE_AVX512
namespace avx512 { extern const KernelTable kernel_table; }
#endif
#ifdef LIPVAE_HAVE_NEON
namespace neon { extern const KernelTable kernel_table; }
#endif

namespace {

std::vector<const KernelTable*> find_usable() {
  std::vector<const KernelTable*> usable;
#ifdef LIPVAE_HAVE_BASELINE
  usable.push_back(&baseline::kernel_table);
#endif
#ifdef LIPVAE_HAVE_NEON
  usable.push_back(&neon::kernel_table);
#endif
#if defined(LIPVAE_HAVE_AVX2) || defined(LIPVAE_HAVE_AVX512)
  // The built-in also asks XGETBV, so a system that does not save the wide registers reads as
  // lacking them.
  __builtin_cpu_init();
  [[maybe_unused]] const bool has_avx2 = __builtin_cpu_supports("avx2") &&
                                         __builtin_cpu_supports("fma") &&
                                         __builtin_cpu_supports("popcnt");
#endif
#ifdef LIPVAE_HAVE_AVX2
  if (has_avx2) usable.push_back(&avx2::kernel_table);
#endif
#ifdef LIPVAE_HAVE_AVX512
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("bmi2"))
    usable.push_back(&avx512::kernel_table);
#endif
  return usable;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{available_kernels().back()};
  return table;
}

}  // namespace

const std::vector<const KernelTable*>& available_kernels() {
  static const std::vector<const KernelTable*> usable = find_usable();
  return usable;
}

const KernelTable& kernels() { return *current().load(std::memory_order_acquire); }

bool select_kernels(const char* isa) {
  for (const KernelTable* table : available_kernels()) {
    if (std::strcmp(table->isa, isa) == 0) {
      current().store(table, std::memory_order_release);
      return true;
    }
  }
  return false;
}

}  // namespace lipvae
