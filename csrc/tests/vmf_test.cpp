// von Mises-Fisher samples: on the sphere, at the distance they claim, with the mean of the law, and
// each from its own index.
#include "testing.hpp"

namespace lipvae::testing {
namespace {

template <class T>
void check(const KernelTable& kernels, std::int64_t samples, std::int64_t rows, std::int64_t dim, int threads) {
  const std::string name = describe<T>(kernels, "vmf", samples, rows, dim, threads);
  const Buffer<T> loc = normals<T>(rows * dim);
  Buffer<T> concentration(rows), out(samples * rows * dim), again(out.size()), tail(rows * dim);
  Buffer<double> t(samples * rows), t_again(t.size()), t_tail(rows);
  for (std::int64_t i = 0; i < rows; ++i) concentration[i] = T(i == 0 ? 0.0 : std::pow(10.0, 4 * uniform() - 1));
  Vmf call{loc.data(), concentration.data(), out.data(), t.data(), samples, rows, dim, 17, 5, false,
           dtype<T>, threads};
  kernels.vmf(call);
  for (std::int64_t i = 0; i < samples * rows; ++i) {
    double norm = 0, inner = 0, length = 0;
    for (std::int64_t j = 0; j < dim; ++j) {
      const double z = out[i * dim + j], m = loc[i % rows * dim + j];
      norm += z * z;
      inner += z * m;
      length += m * m;
    }
    expect(std::fabs(norm - 1) <= 16 * epsilon<T>, name + ": norm");
    expect(std::fabs(1 - inner / std::sqrt(length) - t[i]) <= 16 * epsilon<T>, name + ": distance");
  }
  call.out = again.data();
  call.t = t_again.data();
  call.threads = threads == 1 ? 3 : 1;
  kernels.vmf(call);
  expect(again.same_bits(out) && t_again.same_bits(t), name + ": other threads");
  call.out = tail.data();
  call.t = t_tail.data();
  call.samples = 1;
  call.start = 5 + std::uint64_t((samples - 1) * rows);
  kernels.vmf(call);
  for (std::int64_t j = 0; j < rows * dim; ++j)
    expect(tail[j] == out[(samples - 1) * rows * dim + j], name + ": a sample of its own index");
}

// In three dimensions E<loc, z> = coth(k) - 1/k and E<loc, z>^2 = 1 - 2 E<loc, z> / k.
template <class T>
void check_mean(const KernelTable& kernels, double k) {
  const std::int64_t samples = 20000;
  Buffer<T> loc(3), concentration(1), out(samples * 3);
  Buffer<double> t(samples);
  loc[1] = T(1);
  concentration[0] = T(k);
  kernels.vmf({loc.data(), concentration.data(), out.data(), t.data(), samples, 1, 3, 3, 0, false, dtype<T>, 1});
  double mean = 0;
  for (std::int64_t i = 0; i < samples; ++i) mean += (1 - t[i]) / double(samples);
  const double truth = 1 / std::tanh(k) - 1 / k, variance = 1 - 2 * truth / k - truth * truth;
  expect(std::fabs(mean - truth) <= 5 * std::sqrt(variance / double(samples)), "vmf: mean");
}

}  // namespace

void test_vmf(const KernelTable& kernels) {
  for (std::int64_t dim : {2, 3, 4, 5, 8, 17, 70}) {
    check<float>(kernels, 3, 5, dim, 1);
    check<double>(kernels, 3, 5, dim, 1);
  }
  check<float>(kernels, 32, 256, 33, 4);
  check<double>(kernels, 32, 256, 33, 4);
  for (double k : {0.1, 3.0, 100.0}) check_mean<double>(kernels, k);
}

}  // namespace lipvae::testing
