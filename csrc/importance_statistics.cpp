// Statistics of importance weights over samples that stream by. Means and squared deviations merge by
// Chan, Golub & LeVeque (1979); sums of weights are kept relative to the largest weight so far.
#include "isa_kernels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

struct Moments {
  double mean, squares;  // the sum of squared deviations from the mean

  // Those of n values besides, given their own moments and the count before.
  void merge(Moments other, double before, double n) {
    const double delta = other.mean - mean, total = before + n;
    squares += other.squares + delta * delta * (before * n / total);
    mean += delta * (n / total);
  }
};

template <class Value>
Moments moments(std::int64_t n, Value&& value) {
  double sum = 0.0, squares = 0.0;
  for (std::int64_t k = 0; k < n; ++k) sum += value(k);
  const double mean = sum / double(n);
  for (std::int64_t k = 0; k < n; ++k) {
    const double deviation = value(k) - mean;
    squares += deviation * deviation;
  }
  return {mean, squares};
}

// What is known of one image: of log p(x | z), of log w, and of w relative to exp(peak).
struct State {
  Moments log_likelihood, log_weight;
  double peak, sum, square_sum;
};
static_assert(sizeof(State) == importance_state * sizeof(double));

double finite(double x) {
  constexpr double largest = 1.7976931348623157e308;
  return x > largest ? largest : x < -largest ? -largest : x;
}

template <class T>
void add_samples(const ImportanceStatistics& a, std::int64_t image) {
  const T* ll = static_cast<const T*>(a.log_likelihood) + image * a.samples;
  const double* ratio = a.log_ratio + image * a.samples;
  const auto log_likelihood = [&](std::int64_t k) { return double(ll[k]); };
  const auto log_weight = [&](std::int64_t k) { return double(ll[k]) + ratio[k]; };
  const double n = double(a.samples), before = double(a.before);

  // Finite, so that weights of zero, or of infinity, don't become infinity minus infinity.
  double peak = -__builtin_inf();
  for (std::int64_t k = 0; k < a.samples; ++k) peak = log_weight(k) > peak ? log_weight(k) : peak;
  State found{moments(a.samples, log_likelihood), moments(a.samples, log_weight), finite(peak), 0.0, 0.0};
  State& state = reinterpret_cast<State*>(a.state)[image];
  if (a.before > 0 && state.peak > found.peak) found.peak = state.peak;
  for (std::int64_t k = 0; k < a.samples; ++k) {
    const double weight = __builtin_exp(log_weight(k) - found.peak);
    found.sum += weight;
    found.square_sum += weight * weight;
  }
  if (a.before > 0) {
    const double scale = __builtin_exp(state.peak - found.peak);
    found.sum += state.sum * scale;
    found.square_sum += state.square_sum * scale * scale;
    state.log_likelihood.merge(found.log_likelihood, before, n);
    state.log_weight.merge(found.log_weight, before, n);
    found.log_likelihood = state.log_likelihood;
    found.log_weight = state.log_weight;
  }
  state = found;

  const double total = before + n, spread = 1.0 / (total - 1.0);
  const double statistics[importance_state] = {
      found.log_likelihood.mean,
      __builtin_sqrt(found.log_likelihood.squares * spread),
      __builtin_sqrt(found.log_weight.squares * spread),
      found.peak + __builtin_log(found.sum / total),
      found.log_weight.mean,
      found.log_likelihood.mean - found.log_weight.mean,
      found.sum * found.sum / found.square_sum,
  };
  for (int i = 0; i < importance_state; ++i) a.statistics[i * a.batch + image] = statistics[i];
}

}  // namespace

void importance_statistics(const ImportanceStatistics& a) {
  if (a.samples == 0) return;
  // An exponential takes about as long as 64 bytes of streaming.
  const double bytes = double(a.samples) * double(a.batch) * 64.0;
  parallel_for(a.batch, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t image = begin; image < end; ++image)
      if (a.dtype == DType::float32)
        add_samples<float>(a, image);
      else
        add_samples<double>(a, image);
  });
}

}  // namespace lipvae::LIPVAE_ISA
