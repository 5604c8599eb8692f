#include "importance_rows.hpp"
#include "isa_kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Calls row(k, b) for every sample k and input b. Inputs go in tiles whose targets stay in the cache
// while the samples stream by.
template <class T, class Row>
void for_each_row(std::int64_t samples, std::int64_t batch, std::int64_t dim, double bytes, int threads,
                  Row&& row) {
  const std::int64_t tile_limit = 128 * 1024 / (dim * std::int64_t(sizeof(T)) + 1) + 1;
  const std::int64_t tiles = (batch + tile_limit - 1) / tile_limit;
  const std::int64_t tile = (batch + tiles - 1) / tiles;
  parallel_for(tiles * samples, bytes, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t k = i % samples, first = i / samples * tile;
      const std::int64_t last = batch - first < tile ? batch : first + tile;
      for (std::int64_t b = first; b < last; ++b) row(k, b);
    }
  });
}

template <class Family, class T>
void forward(const Importance& a) {
  const T* parameters = static_cast<const T*>(a.parameters);
  const T* target = static_cast<const T*>(a.target);
  T* out = static_cast<T*>(a.out);
  const std::int64_t width = Family::planes * a.dim;
  const double bytes = double(a.samples) * double(a.batch) * double(width) * sizeof(T);
  for_each_row<T>(a.samples, a.batch, a.dim, bytes, a.threads, [&](std::int64_t k, std::int64_t b) {
    const std::int64_t row = k * a.batch + b;
    out[row] = T(row_log_likelihood<Family>(parameters + row * width, a.dim, target + b * a.dim, a.dim));
  });
}

void forward_bernoulli(const Importance& a) {
  const float* parameters = static_cast<const float*>(a.parameters);
  const float* target = static_cast<const float*>(a.target);
  float* out = static_cast<float*>(a.out);
  const double bytes = double(a.samples) * double(a.batch) * double(a.dim) * sizeof(float);
  const std::int64_t stride = a.batch * a.dim;
  const std::int64_t pairs = (a.samples + 1) / 2;
  for_each_row<float>(pairs, a.batch, a.dim, bytes, a.threads, [&](std::int64_t pair, std::int64_t b) {
    const std::int64_t k = 2 * pair, row = k * a.batch + b;
    const float *logits = parameters + row * a.dim, *x = target + b * a.dim;
    if (k + 1 < a.samples) {
      double found[2];
      bernoulli_rows<2>(logits, stride, {x, x}, a.dim, found);
      out[row] = float(found[0]);
      out[row + a.batch] = float(found[1]);
    } else {
      double found[1];
      bernoulli_rows<1>(logits, stride, {x}, a.dim, found);
      out[row] = float(found[0]);
    }
  });
}

template <class Family, class T>
void backward(const ImportanceBackward& a) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int planes = Family::planes;
  const T* parameters = static_cast<const T*>(a.parameters);
  const T* target = static_cast<const T*>(a.target);
  const T* grad_out = static_cast<const T*>(a.grad_out);
  T* grad = static_cast<T*>(a.grad_parameters);
  const std::int64_t dim = a.dim, width = planes * dim;
  const double bytes = double(a.samples) * double(a.batch) * double(width) * sizeof(T);
  const bool streaming = streams(grad, bytes, vector_bytes) && dim % S::lanes == 0;
  for_each_row<T>(a.samples, a.batch, dim, 2.0 * bytes, a.threads, [&](std::int64_t k, std::int64_t b) {
    const std::int64_t row = k * a.batch + b;
    const T* from = parameters + row * width;
    T* to = grad + row * width;
    const T* x = target + b * dim;
    const V g = S::splat(grad_out[row]);
    std::int64_t i = 0;
    for (; i + S::lanes <= dim; i += S::lanes) {
      V p[planes], d[planes];
      for (int plane = 0; plane < planes; ++plane) p[plane] = S::load(from + plane * dim + i);
      Family::gradient(p, S::load(x + i), g, d);
      for (int plane = 0; plane < planes; ++plane) {
        if (streaming)
          S::stream(to + plane * dim + i, d[plane]);
        else
          S::store(to + plane * dim + i, d[plane]);
      }
    }
    if (i < dim) {
      V p[planes], d[planes];
      for (int plane = 0; plane < planes; ++plane) p[plane] = S::load_first(from + plane * dim + i, dim - i);
      Family::gradient(p, S::load_first(x + i, dim - i), g, d);
      for (int plane = 0; plane < planes; ++plane) S::store_first(to + plane * dim + i, d[plane], dim - i);
    }
    if (streaming) stream_fence();
  });
}

template <class T>
void forward_any(const Importance& a) {
  switch (a.family) {
    case Family::bernoulli:
      if constexpr (sizeof(T) == 4) return forward_bernoulli(a);
      return forward<Bernoulli<T>, T>(a);
    case Family::continuous_bernoulli: return forward<ContinuousBernoulli<T>, T>(a);
    case Family::gaussian: return forward<Gaussian<T>, T>(a);
    case Family::discretized_logistic: return forward<DiscretizedLogistic<T>, T>(a);
    case Family::categorical256: return categorical256(a);
  }
}

template <class T>
void backward_any(const ImportanceBackward& a) {
  switch (a.family) {
    case Family::bernoulli: return backward<Bernoulli<T>, T>(a);
    case Family::continuous_bernoulli: return backward<ContinuousBernoulli<T>, T>(a);
    case Family::gaussian: return backward<Gaussian<T>, T>(a);
    case Family::discretized_logistic: return backward<DiscretizedLogistic<T>, T>(a);
    case Family::categorical256: return categorical256_backward(a);
  }
}

}  // namespace

void importance(const Importance& a) {
  if (a.samples * a.batch == 0) return;
  if (a.dtype == DType::float32)
    forward_any<float>(a);
  else
    forward_any<double>(a);
}

void importance_backward(const ImportanceBackward& a) {
  if (a.samples * a.batch * a.dim == 0) return;
  if (a.dtype == DType::float32)
    backward_any<float>(a);
  else
    backward_any<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
