#include "isa_kernels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

template <class T>
double row_threshold(const T* w, std::int64_t n, double radius) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += w[i] < 0 ? -double(w[i]) : double(w[i]);
  if (sum <= radius) return 0.0;
  double tau = 0.0;
  std::int64_t last = -1;
  for (;;) {
    double s = 0.0;
    std::int64_t c = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double a = w[i] < 0 ? -double(w[i]) : double(w[i]);
      if (a > tau) { s += a; ++c; }
    }
    if (c == last || c == 0) return c == 0 && last < 0 ? __builtin_nan("") : tau;
    last = c;
    tau = (s - radius) / double(c);
  }
}

template <class T>
void project(const L1Ball& a) {
  const double bytes = double(a.rows) * double(a.cols) * sizeof(T) * 4;
  parallel_for(a.rows, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* w = static_cast<const T*>(a.weight) + r * a.cols;
      const double tau = row_threshold(w, a.cols, a.radius);
      a.threshold[r] = tau;
      if (!a.out) continue;
      T* out = static_cast<T*>(a.out) + r * a.cols;
      for (std::int64_t i = 0; i < a.cols; ++i) {
        const double d = (w[i] < 0 ? -double(w[i]) : double(w[i])) - tau;
        out[i] = tau == 0.0 ? w[i] : d > 0 ? T(w[i] < 0 ? -d : d) : d == d ? T(0) : T(d);
      }
    }
  });
}

template <class T>
void backward(const L1BallBackward& a) {
  const double bytes = double(a.rows) * double(a.cols) * sizeof(T) * 3;
  parallel_for(a.rows, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* w = static_cast<const T*>(a.weight) + r * a.cols;
      const T* g = static_cast<const T*>(a.grad) + r * a.cols;
      T* out = static_cast<T*>(a.grad_weight) + r * a.cols;
      const double tau = a.threshold[r];
      double s = 0.0;
      std::int64_t c = 0;
      for (std::int64_t i = 0; i < a.cols; ++i)
        if ((w[i] < 0 ? -double(w[i]) : double(w[i])) > tau) { s += w[i] < 0 ? -double(g[i]) : double(g[i]); ++c; }
      const double mean = tau > 0 && c > 0 ? s / double(c) : 0.0;
      for (std::int64_t i = 0; i < a.cols; ++i) {
        const bool active = tau == 0.0 || (w[i] < 0 ? -double(w[i]) : double(w[i])) > tau;
        out[i] = active ? T(double(g[i]) - (w[i] < 0 ? -mean : mean)) : T(0);
      }
    }
  });
}

}  // namespace

void l1_ball(const L1Ball& a) { a.dtype == DType::float32 ? project<float>(a) : project<double>(a); }
void l1_ball_backward(const L1BallBackward& a) {
  a.dtype == DType::float32 ? backward<float>(a) : backward<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
