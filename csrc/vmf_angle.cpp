// The implicit derivative in kappa of the angle phi = acos <mu, x> of a von Mises-Fisher sample at a
// fixed level of its distribution function (Figurnov, Mohamed & Mnih 2018):
//
//   d phi / d kappa = -int_0^phi (cos - A) f / f(phi) = int_phi^pi (cos - A) f / f(phi),
//
// f(phi) = sin(phi)^(m-2) exp(kappa cos phi). The side on which cos - A keeps its sign is taken, cut
// where f / f(phi) falls below e^-cut, and integrated by Gauss and Legendre's rule.
#include "elementary.hpp"
#include "isa_kernels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

constexpr double cut = 28.0;

LIPVAE_INLINE Vec<double> angle_derivative(Vec<double> t, Vec<double> kappa, Vec<double> complement,
                                           double power, const VmfAngle& a) {
  using S = Simd<double>;
  const Vec<double> tiny = S::splat(1e-300), zero = S::splat(0.0);
  const Vec<double> cosine = 1.0 - t, sine = sqrt(t * (2.0 - t));
  const IntVec<double> near = t < 1.0;
  const Vec<double> half = 2.0 * asin_small(sqrt((near ? t : 2.0 - t) * 0.5));
  const Vec<double> phi = near ? half : 3.14159265358979323846 - half;
  const Vec<double> cotangent = cosine / S::max(sine, tiny);

  // -log(f / f(phi)) at a distance y on the chosen side is at least slope y + curvature y^2 / 2.
  const IntVec<double> left = t < complement;  // <mu, x> above its mean: integrate from 0 to phi
  const Vec<double> side = left ? S::splat(1.0) : S::splat(-1.0);
  const Vec<double> slope = side * (cotangent * power - kappa * sine);
  const Vec<double> cosine_part = kappa * S::max(cosine, zero);
  const Vec<double> curvature = left ? power / S::max(sine * sine, tiny) + cosine_part
                                     : power + 0.4 * cosine_part;  // 1 - cos y >= 2 y^2 / pi^2
  const Vec<double> root = sqrt(slope * slope + curvature * (2.0 * cut));
  const Vec<double> reach = (2.0 * cut) / S::max(slope + root, tiny);
  const Vec<double> length = S::min(left ? phi : 3.14159265358979323846 - phi, reach);
  Vec<double> sum = zero;
  for (int i = 0; i < a.nodes; ++i) {
    const Vec<double> y = length * a.node[i];
    const SinCos<double> h = sin_cos_quarters(y * 0.31830988618379067154);  // of y / 2
    const Vec<double> sin_y = 2.0 * h.sin * h.cos, versine = 2.0 * h.sin * h.sin;
    const Vec<double> change = side * sine * sin_y - cosine * versine;  // cos(phi -+ y) - cos(phi)
    const Vec<double> ratio = S::max((1.0 - versine) - side * cotangent * sin_y, tiny);
    const Vec<double> log_weight = power > 0.0 ? log<double>(ratio) * power + kappa * change : kappa * change;
    sum += exp_pair(log_weight).exp * ((complement - t) + change) * a.weight[i];
  }
  return -side * sum * length;
}

}  // namespace

void vmf_angle(const VmfAngle& a) {
  constexpr int lanes = Simd<double>::lanes;
  const std::int64_t total = a.samples * a.rows;
  parallel_for(total, double(total) * 2000.0, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end; at += lanes) {
      const int count = end - at < lanes ? int(end - at) : lanes;
      Vec<double> t, kappa, complement;
      for (int l = 0; l < lanes; ++l) {
        const std::int64_t i = at + (l < count ? l : count - 1);
        t[l] = a.t[i];
        kappa[l] = a.concentration[i % a.rows];
        complement[l] = a.complement[i % a.rows];
      }
      const Vec<double> out = angle_derivative(t, kappa, complement, double(a.dim - 2), a);
      for (int l = 0; l < count; ++l) a.out[at + l] = out[l];
    }
  });
}

}  // namespace lipvae::LIPVAE_ISA
