// The log-likelihoods of rows of logits that are made where they are used: a tile of them in the second
// cache.
#include "categorical256.hpp"
#include "importance_rows.hpp"
#include "isa_kernels.hpp"
#include "panels.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

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

// Of logits that a thread keeps: a part of the second cache.
constexpr std::int64_t tile_bytes = vector_bytes < 64 ? logits_bytes : 2 * logits_bytes;

// What is known of a row of categorical logits after some levels, for each dimension: the running maximum
// and sum, the target's level, and its logit once it has been seen. Vectors at the end are whole.
template <class T>
struct RowOfLevels {
  using S = Simd<T>;
  T* memory;
  std::int64_t stride;

  void start(const T* target, std::int64_t dim) const {
    for (std::int64_t i = 0; i < stride; ++i) {
      memory[i] = lowest_logit<T>;
      memory[stride + i] = memory[3 * stride + i] = T(0);
      memory[2 * stride + i] = i < dim ? T(level_of(target[i])) : T(-1);
    }
  }
  // planes_at_once levels, `stride` apart, of the vector of dimensions at i.
  LIPVAE_INLINE void merge(int level, std::int64_t i, const T* logits) const {
    T* const at = memory + i;
    typename S::V max = S::load(at), sum = S::load(at + stride), seen = S::load(at + 3 * stride);
    const typename S::V wanted = S::load(at + 2 * stride);
    merge_planes<T>(max, sum, [&](int j) __attribute__((always_inline)) {
      const typename S::V logit = S::load(logits + j * stride);
      seen += S::keep((typename S::I)(wanted == S::splat(T(level + j))), logit);
      return logit;
    });
    S::store(at, max);
    S::store(at + stride, sum);
    S::store(at + 3 * stride, seen);
  }
  double log_likelihood(std::int64_t dim) const {
    return log_softmax(dim, memory, memory + stride, [&](std::int64_t i) { return memory[3 * stride + i]; });
  }
};

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

// The same for 256 levels, of which a few are made for all rows before the next few are: a weight of so
// many planes is read once a tile, and a tile of whole rows would be small.
template <class T>
void run_categorical(const ImportanceLinear& a) {
  using P = Panel<T>;
  using S = Simd<T>;
  const T* hidden = static_cast<const T*>(a.hidden);
  const T* panels = static_cast<const T*>(a.panels);
  const T* target = static_cast<const T*>(a.target);
  const std::int64_t plane_size = P::count(a.dim) * P::size(a.inner), stride = P::count(a.dim) * P::width;
  const std::int64_t columns = planes_at_once * stride;
  const std::int64_t limit = tile_bytes / (columns * std::int64_t(sizeof(T)));
  const std::int64_t tile = limit < P::tile(a.inner) ? limit : P::tile(a.inner);
  const std::int64_t strips = (a.rows + P::rows - 1) / P::rows;
  const double bytes = product_bytes<T>(a.rows, a.inner, levels * stride);
  parallel_for(strips, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    const Scratch scratch(tile * (columns + 4 * stride) * std::int64_t(sizeof(T)));
    T* const logits = static_cast<T*>(scratch.get());
    T* const states = logits + tile * columns;
    const std::int64_t last = end * P::rows < a.rows ? end * P::rows : a.rows;
    for (std::int64_t row = begin * P::rows; row < last; row += tile) {
      const std::int64_t rows = last - row < tile ? last - row : tile;
      auto state = [&](std::int64_t r) { return RowOfLevels<T>{states + r * 4 * stride, stride}; };
      for (std::int64_t r = 0; r < rows; ++r) state(r).start(target + (row + r) % a.batch * a.dim, a.dim);
      for (int level = 0; level < levels; level += planes_at_once) {
        for (int j = 0; j < planes_at_once; ++j)
          multiply(hidden + row * a.inner, rows, a.inner, panels + (level + j) * plane_size, a.dim, false,
                   logits + j * stride, columns);
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t i = 0; i < a.dim; i += S::lanes)
            state(r).merge(level, i, logits + r * columns + i);
      }
      for (std::int64_t r = 0; r < rows; ++r) a.total[row + r] += state(r).log_likelihood(a.dim);
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
    case Family::categorical256: return run_categorical<T>(a);
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
