// Splits a range over threads. The split never changes what a kernel computes for one index, so
// results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace lipvae {

using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);

// Calls function on at most `threads` disjoint ranges that cover [0, count).
void run_ranges(std::int64_t count, int threads, RangeFunction function, void* context);

// Threads that OpenMP would use; 1 in a build without it.
int max_threads();

// "openmp", "std::thread" or "none".
const char* threading_layer();

// Waking a thread costs about as much as streaming this many bytes on the thread that asks.
constexpr std::int64_t bytes_per_thread = 256 * 1024;

// Runs body(begin, end) over [0, count), on one thread unless each thread gets bytes_per_thread.
template <class Body>
inline void parallel_for(std::int64_t count, double total_bytes, int threads, Body&& body) {
  if (count <= 0) return;
  const double useful = total_bytes / static_cast<double>(bytes_per_thread);
  if (threads > 1 && useful < static_cast<double>(threads))
    threads = useful < 2.0 ? 1 : static_cast<int>(useful);
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    body(std::int64_t{0}, count);
    return;
  }
  auto call = [](void* context, std::int64_t begin, std::int64_t end) {
    (*static_cast<decltype(&body)>(context))(begin, end);
  };
  run_ranges(count, threads, call, &body);
}

}  // namespace lipvae
