#include "bernoulli.hpp"
#include "families.hpp"
#include "isa_kernels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// The log density of so many dimensions goes through one logarithm.
template <class Family, class T>
constexpr std::int64_t block_length() {
  constexpr int streams = 2;  // independent chains of sums and products: more spill registers
  constexpr int factors = Family::uses_growing && Family::scaled_sign ? 2 : 1;  // in a dimension
  constexpr int by_lane = streams * max_lane_factors, by_sum = max_factors / Simd<T>::lanes;
  constexpr int vectors = (by_lane < by_sum ? by_lane : by_sum) / factors / streams * streams;
  return std::int64_t(vectors) * Simd<T>::lanes;
}

// Sum of the log density over the dimensions [start, end), a block, of one sample of one input.
template <class Family, class T>
double block_log_likelihood(const T* parameters, const T* target, std::int64_t dim, std::int64_t start,
                            std::int64_t end) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int streams = 2;
  typename Simd<double>::V total = {};
  double logs = Family::constant * double(end - start);
  V linear[streams] = {};
  GrowingProduct<T> growing[streams];
  ScaledProduct<T> scaled[streams];
  auto add = [&](std::int64_t i, int s) {
    V p[Family::planes];
    for (int plane = 0; plane < Family::planes; ++plane) p[plane] = S::load(parameters + plane * dim + i);
    const Block<T> block{linear[s], growing[s], scaled[s]};
    Family::template add<false>(block, p, S::load(target + i), typename S::I{});
  };
  std::int64_t i = start;
  for (; i + streams * S::lanes <= end; i += streams * S::lanes) {
    for (int plane = 0; plane < Family::planes; ++plane)
      prefetch_ahead<streams * vector_bytes>(parameters + plane * dim + i);
#pragma GCC unroll 2
    for (int s = 0; s < streams; ++s) add(i + s * S::lanes, s);
  }
  for (; i + S::lanes <= end; i += S::lanes) add(i, 0);
  if (i < end) {
    V p[Family::planes];
    for (int plane = 0; plane < Family::planes; ++plane)
      p[plane] = S::load_first(parameters + plane * dim + i, end - i);
    const Block<T> block{linear[1], growing[1], scaled[1]};
    Family::template add<true>(block, p, S::load_first(target + i, end - i), S::first(end - i));
  }
  for (int s = 0; s < streams; ++s) for_each_double<T>(linear[s], [&](auto part) { total += part; });
  if constexpr (Family::uses_growing) logs -= GrowingProduct<T>::log(growing);
  if constexpr (Family::scaled_sign != 0) logs += Family::scaled_sign * ScaledProduct<T>::log(scaled);
  return add_lanes<double>(total) + logs;
}

// Sum of the log density over the dimensions of one sample of one input. Its order depends on the row
// alone.
template <class Family, class T>
double row_log_likelihood(const T* parameters, const T* target, std::int64_t dim) {
  constexpr std::int64_t length = block_length<Family, T>();
  double total = 0.0;
  for (std::int64_t start = 0; start < dim; start += length) {
    const std::int64_t end = dim - start < length ? dim : start + length;
    total += block_log_likelihood<Family>(parameters, target, dim, start, end);
  }
  return total;
}

// Bernoulli in float32, several samples of one input at a time. What one gets does not depend on the
// others.
template <int rows>
void bernoulli_rows(const float* logits, std::int64_t stride, const float* target, std::int64_t dim,
                    float* out, std::int64_t out_stride) {
  constexpr std::int64_t length = bernoulli_block_length;
  double total[rows] = {};
  for (std::int64_t start = 0; start < dim; start += length) {
    const std::int64_t end = dim - start < length ? dim : start + length;
    double sum[rows];
    bernoulli_block<rows>(logits + start, stride, target + start, end - start, sum);
    for (int r = 0; r < rows; ++r) {
      if (sum[r] != sum[r])
        sum[r] = block_log_likelihood<Bernoulli<float>>(logits + r * stride, target, dim, start, end);
      total[r] += sum[r];
    }
  }
  for (int r = 0; r < rows; ++r) out[r * out_stride] = float(total[r]);
}

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
    out[row] = T(row_log_likelihood<Family>(parameters + row * width, target + b * a.dim, a.dim));
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
    if (k + 1 < a.samples)
      bernoulli_rows<2>(logits, stride, x, a.dim, out + row, a.batch);
    else
      bernoulli_rows<1>(logits, stride, x, a.dim, out + row, a.batch);
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
