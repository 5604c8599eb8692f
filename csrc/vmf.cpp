// Samples of the von Mises-Fisher distribution, equation (4). See vmf_draws.hpp for t = 1 - <mu, x>
// and vmf_normals.hpp for the tangent.
#include "isa_kernels.hpp"
#include "lanes.hpp"
#include "parallel.hpp"
#include "vmf_draws.hpp"
#include "vmf_normals.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Normals of several short samples are drawn together: this many numbers, which the L1 cache holds.
constexpr std::int64_t vmf_group = 2048;
constexpr std::int64_t vmf_renormalised = 64;
// Long sums are made of sums of this many terms, to keep |x| = 1 to 2 ulp in thousands of dimensions.
constexpr std::int64_t vmf_partial = 512;

// Calls body(i, g, mu, count) with vectors of doubles that cover n elements, `count` of them valid
// and the others 0.
template <class Body>
LIPVAE_INLINE void for_each_pair(const double* g, const double* mu, std::int64_t n, Body&& body) {
  using S = Simd<double>;
  std::int64_t i = 0;
  for (; i + S::lanes <= n; i += S::lanes) body(i, S::load(g + i), S::load(mu + i), 0, S::lanes);
  if (i < n) body(i, S::keep(S::first(n - i), S::load(g + i)), S::load_first(mu + i, n - i), 0, n - i);
}
typedef float HalfFloats __attribute__((vector_size(vector_bytes / 2)));
template <class Body>
LIPVAE_INLINE void for_each_pair(const float* g, const float* mu, std::int64_t n, Body&& body) {
  using S = Simd<float>;
  auto widen = [&](std::int64_t i, Vec<float> a, Vec<float> b, std::int64_t count) {
    HalfFloats half_a[2], half_b[2];
    __builtin_memcpy(half_a, &a, sizeof a);
    __builtin_memcpy(half_b, &b, sizeof b);
    for (int h = 0; h < 2; ++h)
      body(i, __builtin_convertvector(half_a[h], Vec<double>), __builtin_convertvector(half_b[h], Vec<double>),
           h, count);
  };
  std::int64_t i = 0;
  for (; i + S::lanes <= n; i += S::lanes) widen(i, S::load(g + i), S::load(mu + i), S::lanes);
  if (i < n) widen(i, S::keep(S::first(n - i), S::load(g + i)), S::load_first(mu + i, n - i), n - i);
}

// One Newton step towards norm 1.
LIPVAE_INLINE void scale_to_norm(double* x, double square, std::int64_t dim) {
  const double correction = 0.5 * (1.0 - square);
  for (std::int64_t i = 0; i < dim; ++i) x[i] += x[i] * correction;
}

// x = H [-sign w, s v] with the reflection H = I - u u^T / (1 + |mu0|), u = mu + sign e0, which takes
// e0 to -sign mu. It subtracts nothing that nearly cancels, wherever mu lies. mu is normalised here.
// g holds the m - 1 coordinates of the tangent before normalisation.
template <class T>
LIPVAE_INLINE void place(T* out, const T* mu, const T* g, double t, std::int64_t dim) {
  Vec<double> sum_gg = {}, sum_gm = {}, sum_mm = {};
  for (std::int64_t at = 0; at < dim - 1; at += vmf_partial) {
    Vec<double> gg[2] = {}, gm[2] = {}, mm[2] = {};
    const std::int64_t count = dim - 1 - at < vmf_partial ? dim - 1 - at : vmf_partial;
    for_each_pair(g + at, mu + 1 + at, count,
                  [&](std::int64_t i, Vec<double> a, Vec<double> b, int half, std::int64_t) {
      const int k = sizeof(T) == 4 ? half : int(i / Simd<double>::lanes) & 1;
      gg[k] += a * a;
      gm[k] += a * b;
      mm[k] += b * b;
    });
    sum_gg += gg[0] + gg[1];
    sum_gm += gm[0] + gm[1];
    sum_mm += mm[0] + mm[1];
  }
  const double mu0 = double(mu[0]);
  const double scale = 1.0 / __builtin_sqrt(add_lanes<double>(sum_mm) + mu0 * mu0);
  const double first = mu0 * scale, sign = first < 0 ? -1.0 : 1.0;
  const double w = 1.0 - t, s = __builtin_sqrt(t * (2.0 - t));
  const double along = s / __builtin_sqrt(add_lanes<double>(sum_gg));
  const double c = along * add_lanes<double>(sum_gm) * scale;
  const Vec<double> by_g = Simd<double>::splat(along);
  const Vec<double> by_mu = Simd<double>::splat((w - c / (1.0 + sign * first)) * scale);
  out[0] = T(first * w - sign * c);
  T* rest = out + 1;
  if constexpr (sizeof(T) == 8) {
    Vec<double> square = {};
    for_each_pair(g, mu + 1, dim - 1,
                  [&](std::int64_t i, Vec<double> a, Vec<double> b, int, std::int64_t count) {
      const Vec<double> x = by_g * a + by_mu * b;
      square += x * x;
      count == Simd<double>::lanes ? Simd<double>::store(rest + i, x)
                                   : Simd<double>::store_first(rest + i, x, count);
    });
    // The roundings of few coordinates add up to 3 ulp of the norm; many average out.
    if (dim <= vmf_renormalised) scale_to_norm(out, add_lanes<double>(square) + out[0] * out[0], dim);
  } else {
    HalfFloats narrow[2];
    for_each_pair(g, mu + 1, dim - 1,
                  [&](std::int64_t i, Vec<double> a, Vec<double> b, int half, std::int64_t count) {
      narrow[half] = __builtin_convertvector(by_g * a + by_mu * b, HalfFloats);
      if (half == 0) return;
      Vec<float> x;
      __builtin_memcpy(&x, narrow, sizeof x);
      count == Simd<float>::lanes ? Simd<float>::store(rest + i, x)
                                  : Simd<float>::store_first(rest + i, x, count);
    });
  }
}

// m = 2 and 3: the tangent is given, of norm 1.
template <int n, class T>
LIPVAE_INLINE void place_small(T* out, const T* mu, const double (&v)[n], double t) {
  double square = double(mu[0]) * double(mu[0]), inner = 0.0;
  for (int i = 0; i < n; ++i) {
    square += double(mu[i + 1]) * double(mu[i + 1]);
    inner += v[i] * double(mu[i + 1]);
  }
  const double scale = 1.0 / __builtin_sqrt(square);
  const double first = double(mu[0]) * scale, sign = first < 0 ? -1.0 : 1.0;
  const double w = 1.0 - t, s = __builtin_sqrt(t * (2.0 - t)), c = s * inner * scale;
  const double by_mu = (w - c / (1.0 + sign * first)) * scale;
  double x[n + 1] = {first * w - sign * c}, norm = x[0] * x[0];
  for (int i = 0; i < n; ++i) {
    x[i + 1] = s * v[i] + by_mu * double(mu[i + 1]);
    norm += x[i + 1] * x[i + 1];
  }
  scale_to_norm(x, norm, n + 1);
  for (int i = 0; i <= n; ++i) out[i] = T(x[i]);
}

template <class T>
void sample_range(const Vmf& a, std::int64_t begin, std::int64_t end, T* buffer) {
  constexpr std::int64_t block_size = 16 / sizeof(T);
  const T* loc = static_cast<const T*>(a.loc);
  const T* concentration = static_cast<const T*>(a.concentration);
  const PhiloxKey key(a.seed);
  const std::int64_t blocks = (a.dim - 1 + block_size - 1) / block_size, stride = blocks * block_size;
  const std::int64_t group = stride < vmf_group ? vmf_group / stride : 1;
  VmfChunk chunk;
  for (std::int64_t at = begin; at < end;) {
    std::int64_t row = at % a.rows;
    std::int64_t count = end - at < VmfChunk::capacity ? end - at : VmfChunk::capacity;
    if (a.shared && count > a.rows - row) count = a.rows - row;  // one index a chunk
    const std::uint64_t index = a.start + std::uint64_t(a.shared ? at / a.rows : at);
    const std::int64_t first_row = row;
    for (std::int64_t i = 0; i < count + 8; ++i) {
      chunk.kappa[i] = double(concentration[row]);
      chunk.index[i] = index + std::uint64_t(a.shared ? 0 : i);
      row = row + 1 < a.rows ? row + 1 : 0;
    }
    draw_t(chunk, int(count), key, a.dim);
    row = first_row;
    T* out = static_cast<T*>(a.out) + at * a.dim;
    if (a.dim > 3 && a.shared) fill_normals(buffer, index, 1, blocks, key);
    for (std::int64_t i = 0; i < count; ++i, out += a.dim) {
      const T* mu = loc + row * a.dim;
      if (a.dim == 2) {
        place_small<1>(out, mu, {chunk.cosine[i]}, chunk.t[i]);
      } else if (a.dim == 3) {
        place_small<2>(out, mu, {chunk.cosine[i], chunk.sine[i]}, chunk.t[i]);
      } else {
        const std::int64_t slot = a.shared ? 0 : i % group;
        if (!a.shared && slot == 0)
          fill_normals(buffer, chunk.index[i], count - i < group ? count - i : group, blocks, key);
        place<T>(out, mu, buffer + slot * stride, chunk.t[i], a.dim);
      }
      a.t[at + i] = chunk.t[i];
      row = row + 1 < a.rows ? row + 1 : 0;
    }
    at += count;
  }
}

template <class T>
void sample_all(const Vmf& a) {
  const std::int64_t total = a.samples * a.rows;
  // A number drawn costs about as much as sixteen numbers moved.
  parallel_for(total, double(total) * double(a.dim + 8) * 16.0 * sizeof(T), a.threads,
               [&](std::int64_t begin, std::int64_t end) {
    if (a.dim <= vmf_group) {
      T buffer[vmf_group + 4 * vector_bytes];
      sample_range<T>(a, begin, end, buffer);
    } else {
      T buffer[vmf_max_dim + 4 * vector_bytes];
      sample_range<T>(a, begin, end, buffer);
    }
  });
}

}  // namespace

void vmf(const Vmf& a) { a.dtype == DType::float32 ? sample_all<float>(a) : sample_all<double>(a); }

}  // namespace lipvae::LIPVAE_ISA
