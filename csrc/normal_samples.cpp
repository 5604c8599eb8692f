// Samples of normal distributions and what their importance weights need of the densities. For
// z = loc + scale * noise, log q(z) is the noise's density less the sum of log scale, so
//
//   log p(z) - log q(z) = (sum noise^2 - sum z^2 + sum log_variance) / 2.
#include "lanes.hpp"
#include "isa_kernels.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
void sample_image(const NormalSamples& a, std::int64_t image, double* scale) {
  using S = Simd<double>;
  typedef T Stored __attribute__((vector_size(sizeof(T) * S::lanes)));
  const std::int64_t dim = a.dim;
  const double* loc = a.loc + image * dim;
  const double* log_variance = a.log_variance + image * dim;
  double log_volume = 0.0;
  for (std::int64_t j = 0; j < dim; ++j) {
    log_volume += log_variance[j];
    scale[j] = __builtin_exp(0.5 * log_variance[j]);
  }
  for (std::int64_t k = 0; k < a.samples; ++k) {
    const double* noise = a.noise + k * dim;
    T* z = static_cast<T*>(a.z) + (image * a.samples + k) * dim;
    S::V sums{};
    std::int64_t j = 0;
    for (; j + S::lanes <= dim; j += S::lanes) {
      const S::V drawn = S::load(noise + j), value = S::load(loc + j) + S::load(scale + j) * drawn;
      const Stored stored = __builtin_convertvector(value, Stored);
      __builtin_memcpy(z + j, &stored, sizeof stored);
      sums += drawn * drawn - value * value;
    }
    double sum = add_lanes<double>(sums) + log_volume;
    for (; j < dim; ++j) {
      const double drawn = noise[j], value = loc[j] + scale[j] * drawn;
      z[j] = T(value);
      sum += drawn * drawn - value * value;
    }
    a.log_ratio[image * a.samples + k] = 0.5 * sum;
  }
}

}  // namespace

void normal_samples(const NormalSamples& a) {
  const double bytes = double(a.samples) * double(a.batch) * double(a.dim + 1) * sizeof(double);
  parallel_for(a.batch, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    const Scratch scale(a.dim * std::int64_t(sizeof(double)));
    for (std::int64_t image = begin; image < end; ++image)
      if (a.dtype == DType::float32)
        sample_image<float>(a, image, static_cast<double*>(scale.get()));
      else
        sample_image<double>(a, image, static_cast<double*>(scale.get()));
  });
}

}  // namespace lipvae::LIPVAE_ISA
