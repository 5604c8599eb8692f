// The log-likelihoods of rows of logits that are made where they are used: a tile of them in the second
// cache.
#include "categorical256.hpp"
#include "importance_rows.hpp"
#include "isa_kernels.hpp"
#include "panels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Adds the log-likelihood of row r of a tile of logits to total[r]; image(r) is its target.
template <class Family, class T>
struct AddRows {
  static constexpr int planes = Family::planes;
  template <class Image>
  static void add(const T* logits, std::int64_t stride, std::int64_t rows, Image&& image, std::int64_t dim,
                  double* total) {
    for (std::int64_t r = 0; r < rows; ++r)
      total[r] += row_log_likelihood<Family>(logits + r * planes * stride, stride, image(r), dim);
  }
};

template <>
struct AddRows<Bernoulli<float>, float> {
  static constexpr int planes = 1;
  template <class Image>
  static void add(const float* logits, std::int64_t stride, std::int64_t rows, Image&& image,
                  std::int64_t dim, double* total) {
    for (std::int64_t r = 0; r < rows; r += 2) {
      if (r + 1 < rows) {
        double found[2];
        bernoulli_rows<2>(logits + r * stride, stride, {image(r), image(r + 1)}, dim, found);
        total[r] += found[0];
        total[r + 1] += found[1];
      } else {
        double found[1];
        bernoulli_rows<1>(logits + r * stride, stride, {image(r)}, dim, found);
        total[r] += found[0];
      }
    }
  }
};

template <class T>
struct Categorical256 {};

template <class T>
struct AddRows<Categorical256<T>, T> {
  static constexpr int planes = levels;
  template <class Image>
  static void add(const T* logits, std::int64_t stride, std::int64_t rows, Image&& image, std::int64_t dim,
                  double* total) {
    for (std::int64_t r = 0; r < rows; ++r)
      total[r] += categorical_log_likelihood(logits + r * planes * stride, stride, image(r), dim);
  }
};

// Of logits that a thread keeps: a part of the second cache.
constexpr std::int64_t tile_bytes = vector_bytes < 64 ? logits_bytes : 2 * logits_bytes;

template <class Family, class T>
void run(const ImportanceLinear& a) {
  using P = Panel<T>;
  using Add = AddRows<Family, T>;
  const T* hidden = static_cast<const T*>(a.hidden);
  const T* panels = static_cast<const T*>(a.panels);
  const T* target = static_cast<const T*>(a.target);
  const std::int64_t stride = P::count(a.dim) * P::width, columns = Add::planes * stride;
  const std::int64_t plane_size = P::count(a.dim) * P::size(a.inner);
  const std::int64_t limit = tile_bytes / (columns * std::int64_t(sizeof(T)));
  const std::int64_t tile = limit < P::tile(a.inner) ? limit : P::tile(a.inner);
  const std::int64_t strips = (a.rows + P::rows - 1) / P::rows;
  const double bytes = product_bytes<T>(a.rows, a.inner, columns);
  parallel_for(strips, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) T logits[tile_bytes / sizeof(T)];
    const std::int64_t last = end * P::rows < a.rows ? end * P::rows : a.rows;
    const std::int64_t tiles = (last - begin * P::rows + tile - 1) / tile;
    std::int64_t row = begin * P::rows;
    for (std::int64_t left = tiles; left > 0; --left) {
      const std::int64_t rows = (last - row + left - 1) / left;
      for (int plane = 0; plane < Add::planes; ++plane)
        multiply(hidden + row * a.inner, rows, a.inner, panels + plane * plane_size, a.dim, false,
                 logits + plane * stride, columns);
      auto image = [&](std::int64_t r) { return target + (row + r) % a.batch * a.dim; };
      Add::add(logits, stride, rows, image, a.dim, a.total + row);
      row += rows;
    }
  });
}

template <class T>
void run_any(const ImportanceLinear& a) {
  switch (a.family) {
    case Family::bernoulli: return run<Bernoulli<T>, T>(a);
    case Family::continuous_bernoulli: return run<ContinuousBernoulli<T>, T>(a);
    case Family::gaussian: return run<Gaussian<T>, T>(a);
    case Family::discretized_logistic: return run<DiscretizedLogistic<T>, T>(a);
    case Family::categorical256: return run<Categorical256<T>, T>(a);
  }
}

}  // namespace

void importance_linear(const ImportanceLinear& a) {
  if (a.rows * a.dim == 0) return;
  if (a.dtype == DType::float32)
    run_any<float>(a);
  else
    run_any<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
