#include "parallel.hpp"

#if defined(LIPVAE_STD_THREAD)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace lipvae {
namespace {

[[maybe_unused]] void run_part(std::int64_t count, int part, int parts, RangeFunction function,
                               void* context) {
  const std::int64_t quotient = count / parts, remainder = count % parts;
  const std::int64_t begin = part * quotient + (part < remainder ? part : remainder);
  const std::int64_t end = begin + quotient + (part < remainder ? 1 : 0);
  if (begin < end) function(context, begin, end);
}

}  // namespace

#if defined(LIPVAE_STD_THREAD)

void run_ranges(std::int64_t count, int threads, RangeFunction function, void* context) {
  std::vector<std::thread> pool;
  for (int part = 1; part < threads; ++part)
    pool.emplace_back(run_part, count, part, threads, function, context);
  run_part(count, 0, threads, function, context);
  for (std::thread& thread : pool) thread.join();
}

int max_threads() {
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? static_cast<int>(cores) : 1;
}
const char* threading_layer() { return "std::thread"; }

#elif defined(_OPENMP)

void run_ranges(std::int64_t count, int threads, RangeFunction function, void* context) {
#pragma omp parallel num_threads(threads)
  {
    // The run-time may grant fewer threads than asked for.
    run_part(count, omp_get_thread_num(), omp_get_num_threads(), function, context);
  }
}

int max_threads() { return omp_get_max_threads(); }
const char* threading_layer() { return "openmp"; }

#else

void run_ranges(std::int64_t count, int, RangeFunction function, void* context) {
  function(context, 0, count);
}

int max_threads() { return 1; }
const char* threading_layer() { return "none"; }

#endif

}  // namespace lipvae
