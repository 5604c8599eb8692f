#include "memory.hpp"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace lipvae {
namespace {

// Bytes of the cache that a core reaches, 0 if unknown. glibc's sysconf adds up the caches of all parts of an
// EPYC, so Linux itself is asked first.
long last_cache_bytes() {
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long size = 0;
    char unit = 0;
    const int found = std::fscanf(file, "%ld%c", &size, &unit);
    std::fclose(file);
    if (found == 2 && unit == 'K') return size << 10;
    if (found == 2 && unit == 'M') return size << 20;
  }
#ifdef _SC_LEVEL3_CACHE_SIZE
  return sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
  return 0;
#endif
}

double streaming_bytes_by_cache() {
  static const double bytes = [] {
    const long cache = last_cache_bytes();
    return 0.75 * static_cast<double>(cache > 0 ? cache : 32L << 20);
  }();
  return bytes;
}

std::atomic<double> limit{streaming_by_cache};

bool is_amd() {
#if defined(__x86_64__)
  static const bool amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return amd;
#else
  return false;
#endif
}

}  // namespace

bool streams(const void* out, double bytes, std::size_t element_bytes) {
  const double set = limit.load(std::memory_order_relaxed);
  return bytes > (set < 0.0 ? streaming_bytes_by_cache() : set) &&
         reinterpret_cast<std::uintptr_t>(out) % element_bytes == 0;
}

void set_streaming_bytes(double bytes) { limit.store(bytes, std::memory_order_relaxed); }

bool split_stores_are_slow() { return !is_amd(); }

const std::int64_t reading_ahead = is_amd() ? 6144 : 4096;

}  // namespace lipvae
