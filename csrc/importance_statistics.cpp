// Statistics of importance weights over samples that stream by. Means and squared deviations merge by
// Chan, Golub & LeVeque (1979); sums of weights are kept relative to the largest weight so far.
#include "elementary.hpp"
#include "isa_kernels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

using S = Simd<double>;
using V = Vec<double>;

struct Moments {
  double mean, squares;  // the sum of squared deviations from the mean

  // Those of n values besides, given their own moments and the count before.
  void merge(Moments other, double before, double n) {
    const double delta = other.mean - mean, total = before + n;
    squares += other.squares + delta * delta * (before * n / total);
    mean += delta * (n / total);
  }
};

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

// The first `count` of `lanes` numbers as doubles, zeros beyond them.
template <class T>
LIPVAE_INLINE V load_doubles(const T* p, std::int64_t count) {
  typedef T Stored __attribute__((vector_size(sizeof(T) * S::lanes)));
  Stored stored{};
  if (count >= S::lanes)
    __builtin_memcpy(&stored, p, sizeof stored);
  else
    for (int l = 0; l < S::lanes; ++l)
      if (l < count) stored[l] = p[l];
  return __builtin_convertvector(stored, V);
}

template <class T>
void add_samples(const ImportanceStatistics& a, std::int64_t image) {
  const T* ll = static_cast<const T*>(a.log_likelihood) + image * a.samples;
  const double* ratio = a.log_ratio + image * a.samples;
  const double n = double(a.samples), before = double(a.before);
  // Calls body(log p(x | z_k), log w_k, which lanes are there) for vectors of samples.
  const auto for_each = [&](auto&& body) {
    for (std::int64_t k = 0; k < a.samples; k += S::lanes) {
      const V log_likelihood = load_doubles(ll + k, a.samples - k);
      body(log_likelihood, log_likelihood + load_doubles(ratio + k, a.samples - k), S::first(a.samples - k));
    }
  };

  V ll_sum{}, weight_sum{}, peaks = S::splat(-__builtin_inf());
  for_each([&](V log_likelihood, V log_weight, S::I there) {
    ll_sum += log_likelihood;
    weight_sum += log_weight;
    peaks = there & (log_weight > peaks) ? log_weight : peaks;
  });
  // Finite, so that weights of zero, or of infinity, don't become infinity minus infinity.
  State found{{add_lanes<double>(ll_sum) / n, 0.0}, {add_lanes<double>(weight_sum) / n, 0.0}, 0.0, 0.0, 0.0};
  found.peak = finite(max_lanes<double>(peaks));
  State& state = reinterpret_cast<State*>(a.state)[image];
  if (a.before > 0 && state.peak > found.peak) found.peak = state.peak;

  V ll_squares{}, weight_squares{}, sum{}, square_sum{};
  for_each([&](V log_likelihood, V log_weight, S::I there) {
    const V ll_deviation = S::keep(there, log_likelihood - found.log_likelihood.mean);
    const V deviation = S::keep(there, log_weight - found.log_weight.mean);
    const V weight = S::keep(there, exp<double>(log_weight - found.peak));
    ll_squares += ll_deviation * ll_deviation;
    weight_squares += deviation * deviation;
    sum += weight;
    square_sum += weight * weight;
  });
  found.log_likelihood.squares = add_lanes<double>(ll_squares);
  found.log_weight.squares = add_lanes<double>(weight_squares);
  found.sum = add_lanes<double>(sum);
  found.square_sum = add_lanes<double>(square_sum);
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
  // Two passes and an exponential are work for more bytes than the two numbers of a sample have.
  const double bytes = double(a.samples) * double(a.batch) * 32.0;
  parallel_for(a.batch, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t image = begin; image < end; ++image)
      if (a.dtype == DType::float32)
        add_samples<float>(a, image);
      else
        add_samples<double>(a, image);
  });
}

}  // namespace lipvae::LIPVAE_ISA
