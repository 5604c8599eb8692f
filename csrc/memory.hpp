// What kernels ask about the memory that they read from and write to.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lipvae {

// Outputs larger than this many bytes do not stay in the last cache, so kernels write past it.
bool streams(const void* out, double bytes, std::size_t element_bytes);

// The limit for streams(), which a test's data does not exceed otherwise. Below 0: by the cache.
constexpr double streaming_by_cache = -1.0;
void set_streaming_bytes(double bytes);

// Whether stores of 64 bytes across two cache lines are to be avoided even at the price of a copy in the first
// cache. On an Intel Xeon a copy is faster, on an AMD EPYC (Zen 5) slower.
bool split_stores_are_slow();

// How many bytes ahead to ask for what is read once and takes much arithmetic: on an AMD EPYC (Zen 5) 6 kB gain a
// tenth over 4, on an Intel Xeon 1 to 4 kB are alike and 8 slower.
extern const std::int64_t reading_ahead;

}  // namespace lipvae
