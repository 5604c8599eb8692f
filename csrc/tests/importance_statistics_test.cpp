// normal_samples against its definition, and importance_statistics of samples that come in parts against
// those of all samples at once, in long doubles.
#include "testing.hpp"

namespace lipvae::testing {
namespace {

template <class T>
void check_samples(const KernelTable& kernels, std::int64_t batch, std::int64_t samples, std::int64_t dim) {
  const std::string name = describe<T>(kernels, "normal_samples", batch, samples, dim);
  const Buffer<double> loc = normals<double>(batch * dim, 3.0), log_variance = normals<double>(batch * dim);
  const Buffer<double> noise = normals<double>(samples * dim);
  Buffer<T> z(batch * samples * dim), again(z.size());
  Buffer<double> ratio(batch * samples), ratio_again(ratio.size());
  NormalSamples call{loc.data(), log_variance.data(), noise.data(), z.data(), ratio.data(),
                     batch, samples, dim, dtype<T>, 1};
  kernels.normal_samples(call);
  for (std::int64_t i = 0; i < batch; ++i)
    for (std::int64_t k = 0; k < samples; ++k) {
      long double prior = 0, posterior = 0, size = 0;
      for (std::int64_t j = 0; j < dim; ++j) {
        const long double scale = std::exp(0.5L * log_variance[i * dim + j]), drawn = noise[k * dim + j];
        const long double value = loc[i * dim + j] + scale * drawn;
        expect(std::fabs(double(value) - double(z[(i * samples + k) * dim + j])) <=
                   epsilon<T> * (std::fabs(double(value)) + 16 * std::fabs(double(scale * drawn))),
               name + ": z");
        prior -= value * value / 2;
        posterior -= drawn * drawn / 2 + std::log(scale);
        size += value * value + drawn * drawn + 1;
      }
      expect(std::fabs(double(prior - posterior) - ratio[i * samples + k]) <= 32 * epsilon<double> * double(size),
             name + ": ratio");
    }
  call.z = again.data();
  call.log_ratio = ratio_again.data();
  call.threads = 3;
  kernels.normal_samples(call);
  expect(again.same_bits(z) && ratio_again.same_bits(ratio), name + ": other threads");
}

template <class T>
void check_statistics(const KernelTable& kernels, std::int64_t batch, std::int64_t samples, std::int64_t part,
                      double level) {
  const std::string name = describe<T>(kernels, "importance_statistics", batch, samples, part);
  Buffer<T> ll(batch * samples);
  for (std::int64_t i = 0; i < ll.size(); ++i) ll[i] = T(level + 3 * normal());
  const Buffer<double> ratio = normals<double>(batch * samples, 2.0);
  Buffer<double> state(batch * importance_state), found(batch * importance_state);
  for (std::int64_t start = 0; start < samples; start += part) {
    const std::int64_t count = std::min(part, samples - start);
    Buffer<T> some(batch * count);
    Buffer<double> some_ratio(batch * count);
    for (std::int64_t i = 0; i < batch; ++i)
      for (std::int64_t k = 0; k < count; ++k) {
        some[i * count + k] = ll[i * samples + start + k];
        some_ratio[i * count + k] = ratio[i * samples + start + k];
      }
    kernels.importance_statistics({some.data(), some_ratio.data(), state.data(), found.data(), batch, count,
                                   start, dtype<T>, start % 2 ? 3 : 1});
  }
  for (std::int64_t i = 0; i < batch; ++i) {
    const T* values = ll.data() + i * samples;
    const double* ratios = ratio.data() + i * samples;
    long double mean = 0, weight_mean = 0, peak = -INFINITY, squares = 0, weight_squares = 0, sum = 0, square_sum = 0;
    for (std::int64_t k = 0; k < samples; ++k) {
      const long double log_weight = static_cast<long double>(values[k]) + ratios[k];
      mean += values[k] / static_cast<long double>(samples);
      weight_mean += log_weight / samples;
      peak = std::max(peak, log_weight);
    }
    for (std::int64_t k = 0; k < samples; ++k) {
      const long double log_weight = static_cast<long double>(values[k]) + ratios[k];
      squares += (values[k] - mean) * (values[k] - mean);
      weight_squares += (log_weight - weight_mean) * (log_weight - weight_mean);
      sum += std::exp(log_weight - peak);
      square_sum += std::exp(2 * (log_weight - peak));
    }
    const long double truth[] = {mean,
                                 std::sqrt(squares / (samples - 1)),
                                 std::sqrt(weight_squares / (samples - 1)),
                                 peak + std::log(sum / samples),
                                 weight_mean,
                                 mean - weight_mean,
                                 sum * sum / square_sum};
    for (int s = 0; s < importance_state; ++s) {
      const double got = found[s * batch + i], want = double(truth[s]);
      const double allowed = 256 * epsilon<double> * (std::fabs(want) + std::fabs(level) + 10);
      if (samples == 1 && (s == 1 || s == 2))
        expect(std::isnan(got), name + ": one sample has no spread");
      else
        expect(std::fabs(got - want) <= allowed, name + ": statistic " + std::to_string(s));
    }
  }
}

// Likelihoods of zero and of any size, and one that is not a number.
void check_extremes(const KernelTable& kernels) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const double ll[] = {-1e30, -1e30, -inf, -2.0, -inf, -inf, nan, 0.0}, ratio[8] = {};
  double state[4 * importance_state], found[4 * importance_state];
  kernels.importance_statistics({ll, ratio, state, found, 4, 2, 0, DType::float64, 1});
  const double* evidence = found + 3 * 4;
  const double* ess = found + 6 * 4;
  expect(evidence[0] == -1e30 && ess[0] == 2.0, "importance_statistics: very small");
  expect(std::fabs(evidence[1] - (-2.0 - std::log(2.0))) < 1e-15 && ess[1] == 1.0, "importance_statistics: one zero");
  expect(evidence[2] == -inf && std::isnan(ess[2]), "importance_statistics: all zero");
  expect(std::isnan(evidence[3]) && std::isnan(ess[3]) && std::isnan(found[3]), "importance_statistics: NaN");
}

}  // namespace

void test_importance_statistics(const KernelTable& kernels) {
  for (std::int64_t dim : {1, 2, 7, 8, 10, 33}) {
    check_samples<float>(kernels, 3, 5, dim);
    check_samples<double>(kernels, 3, 5, dim);
  }
  check_samples<float>(kernels, 9, 128, 70);
  for (std::int64_t part : {1, 3, 8}) {
    check_statistics<float>(kernels, 4, 8, part, -100.0);
    check_statistics<double>(kernels, 4, 8, part, -1e4);
  }
  check_statistics<float>(kernels, 2, 1, 1, 0.0);
  check_statistics<float>(kernels, 60, 300, 128, -50.0);
  check_extremes(kernels);
}

}  // namespace lipvae::testing
