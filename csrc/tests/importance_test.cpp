// Log-likelihoods against the densities in long double, their gradients against finite differences.
#include <algorithm>
#include <type_traits>

#include "testing.hpp"

namespace lipvae::testing {
namespace {

using Real = long double;

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

// p points at the first of the parameters, `stride` apart.
template <class T>
Real log_density(Family family, const T* p, std::int64_t stride, Real x, std::int64_t shifted, Real shift) {
  auto parameter = [&](std::int64_t plane) { return Real(p[plane * stride]) + (plane == shifted ? shift : 0); };
  switch (family) {
    case Family::bernoulli:
    case Family::continuous_bernoulli: {
      const Real l = parameter(0), a = std::fabs(l);
      const Real likelihood = x * l - std::max(l, Real(0)) - std::log1p(std::exp(-a));
      if (family == Family::bernoulli) return likelihood;
      return likelihood + (a < 1e-9L ? std::log(2.0L) : std::log(a / std::tanh(a / 2)));
    }
    case Family::gaussian: {
      const Real z = (x - parameter(0)) * std::exp(-parameter(1));
      return -z * z / 2 - parameter(1) - std::log(2 * std::acos(-1.0L)) / 2;
    }
    case Family::discretized_logistic: {
      const Real scale = std::exp(parameter(1)), half = 1.0L / 510;
      const Real u = (x + half - parameter(0)) / scale, v = (x - half - parameter(0)) / scale;
      if (x < half) return std::log(sigmoid(u));
      if (x > 1 - half) return std::log(sigmoid(-v));
      // sigmoid(u) - sigmoid(v) without cancellation
      return std::log(sigmoid(u) * sigmoid(-v) * -std::expm1(v - u));
    }
    case Family::categorical256: {
      Real sum = 0;
      for (int plane = 0; plane < 256; ++plane) sum += std::exp(parameter(plane));
      return parameter(std::llround(255 * x)) - std::log(sum);
    }
  }
  return 0;
}

template <class T>
Buffer<T> parameters_of(Family family, std::int64_t rows, std::int64_t planes, std::int64_t dim) {
  Buffer<T> parameters = normals<T>(rows * planes * dim, planes == 2 ? 0.5 : 4.0);
  if (planes == 2)  // log scales around -2
    for (std::int64_t i = 0; i < parameters.size(); ++i)
      if (i / dim % 2 == 1) parameters[i] -= T(2);
  if (family == Family::bernoulli)
    for (std::int64_t i = 0; i < parameters.size(); i += 7) parameters[i] *= T(40);
  return parameters;
}

template <class T>
void check(const KernelTable& kernels, Family family, std::int64_t samples, std::int64_t batch,
           std::int64_t dim, int threads) {
  const std::string name = describe<T>(kernels, "importance", int(family), samples, batch, dim, threads);
  const std::int64_t planes = planes_of(family), rows = samples * batch;
  const bool fused = std::strcmp(kernels.isa, "baseline") != 0;
  const Buffer<T> parameters = parameters_of<T>(family, rows, planes, dim), target = pixels<T>(batch * dim);
  const Buffer<T> grad_out = normals<T>(rows);
  Buffer<T> out(rows), again(rows), grad(parameters.size()), grad_again(parameters.size());
  Importance call{parameters.data(), target.data(), out.data(), samples, batch, dim, family, dtype<T>, threads};
  ImportanceBackward back{grad_out.data(), parameters.data(), target.data(), grad.data(), samples, batch,
                          dim, family, dtype<T>, threads};
  kernels.importance(call);
  kernels.importance_backward(back);
  for (std::int64_t row = 0; row < rows; ++row) {
    Real sum = 0, size = 0, rounding = 0;
    const T* p = parameters.data() + row * planes * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
      const Real x = target[row % batch * dim + d];
      const Real term = log_density(family, p + d, dim, x, -1, 0);
      sum += term;
      size += 1 + std::fabs(term);
      // The product is rounded before it meets the logit: by half a unit in its last place.
      const bool logit = family == Family::bernoulli || family == Family::continuous_bernoulli;
      if (!fused && logit) rounding += epsilon<T> / 2 * std::fabs(x * p[d]);
      if (d % 13 == 0)
        for (std::int64_t plane = 0; plane < planes; plane += planes == 256 ? 51 : 1) {
          const Real h = 1e-5L, g = grad_out[row];
          const Real slope = (log_density(family, p + d, dim, x, plane, h) -
                              log_density(family, p + d, dim, x, plane, -h)) / (2 * h);
          // The density of a bin in float32 knows its ends no better than their distance allows.
          const Real bound = (1e-9L + 64 * epsilon<T>) * (1 + std::fabs(g)) * (1 + std::fabs(slope)) *
                             (family == Family::discretized_logistic ? 32 : 1);
          const Real got = grad[(row * planes + plane) * dim + d];
          expect(std::fabs(got - g * slope) <= bound, name + ": gradient");
        }
    }
    // Sums in float32 are carried on in doubles every few hundred terms.
    expect(std::fabs(out[row] - sum) <= (sizeof(T) == 4 ? 2.5L : 5) * epsilon<T> * size + rounding, name + ": sum");
  }
  call.out = again.data();
  back.grad_parameters = grad_again.data();
  call.threads = back.threads = threads == 1 ? 3 : 1;
  kernels.importance(call);
  kernels.importance_backward(back);
  expect(again.same_bits(out) && grad_again.same_bits(grad), name + ": other threads");
}

// The NaN with the most bits: what integer arithmetic on exponents meets at its worst.
template <class T>
T fullest_nan() {
  const auto bits = std::numeric_limits<std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>>::max();
  T nan;
  std::memcpy(&nan, &bits, sizeof nan);
  return nan;
}

// One parameter that is no number or infinite: a NaN shows in the sum and in the gradient of its
// dimension, and no other row changes.
template <class T>
void check_not_finite(const KernelTable& kernels, Family family) {
  const std::string name = describe<T>(kernels, "importance, not finite", int(family));
  const std::int64_t planes = planes_of(family), dim = 37, rows = 3, bad = 1;
  const Buffer<T> finite = parameters_of<T>(family, rows, planes, dim), target = pixels<T>(dim);
  Buffer<T> grad_out(rows), before(rows), after(rows), grad(finite.size());
  for (std::int64_t r = 0; r < rows; ++r) grad_out[r] = T(1);
  kernels.importance({finite.data(), target.data(), before.data(), rows, 1, dim, family, dtype<T>, 1});
  const T infinity = std::numeric_limits<T>::infinity(), nan = fullest_nan<T>();
  for (T value : {infinity, -infinity, nan, -nan})
    for (std::int64_t dimension : {0, 17, 36}) {
      const std::int64_t at = bad * planes * dim + dimension;
      Buffer<T> parameters = finite;
      parameters[at] = value;
      kernels.importance({parameters.data(), target.data(), after.data(), rows, 1, dim, family, dtype<T>, 1});
      kernels.importance_backward({grad_out.data(), parameters.data(), target.data(), grad.data(), rows, 1, dim,
                                   family, dtype<T>, 1});
      for (std::int64_t r = 0; r < rows; ++r)
        if (r != bad) expect(after[r] == before[r], name + ": another row");
      if (std::isnan(value)) expect(std::isnan(after[bad]) && std::isnan(grad[at]), name + ": a NaN");
    }
}

template <class T>
void check_all(const KernelTable& kernels) {
  for (int code = 0; code < 5; ++code) {
    const auto family = Family(code);
    for (std::int64_t dim : {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65, 100})
      check<T>(kernels, family, 2, 3, dim, 1);
    if (family == Family::categorical256) {
      check<T>(kernels, family, 2, 33, 51, 4);
    } else {
      check<T>(kernels, family, 2, 2, 2000, 1);  // several blocks
      check<T>(kernels, family, 16, 64, 257, 4);
    }
    check_not_finite<T>(kernels, family);
    Buffer<T> out(6);
    for (int i = 0; i < 6; ++i) out[i] = T(7);
    kernels.importance({nullptr, nullptr, out.data(), 2, 3, 0, family, dtype<T>, 1});
    for (int i = 0; i < 6; ++i) expect(out[i] == 0, describe<T>(kernels, "importance without dimensions", code));
  }
}

}  // namespace

void test_importance(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
