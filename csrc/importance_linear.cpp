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

// Not on the stack, of which a thread may have little; kept from call to call, as a stack's pages are.
void* tile_room() {
  thread_local const Scratch room(tile_bytes);
  return room.get();
}

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

// The planes of a few parameters for a tile of rows: what a thread keeps.
template <class T>
struct Planes {
  using P = Panel<T>;
  const ImportanceLinear& a;
  std::int64_t stride, columns, most_rows;  // from plane to plane, from row to row, in a tile
  RowUnits units;

  Planes(const ImportanceLinear& arguments, int at_once)
      : a(arguments), stride(P::count(a.dim) * P::width), columns(at_once * stride),
        most_rows(rows_that_fit()), units(a.rows, a.together <= most_rows ? a.together : 1, P::rows, a.threads) {}
  // Planes [first, first + count) of the rows of a tile. The last vector of a plane is whole, with zeros.
  void make(std::int64_t row, std::int64_t rows, int first, int count, T* out) const {
    const T* const panels = static_cast<const T*>(a.panels);
    const T* const hidden = static_cast<const T*>(a.hidden) + row * a.inner;
    constexpr int lanes = Simd<T>::lanes;
    const std::int64_t whole = (a.dim + lanes - 1) / lanes * lanes;
    for (int j = 0; j < count; ++j)
      multiply<T>({units.counts(rows), {hidden, a.inner, units.size * a.inner}, a.inner,
                   panels + (first + j) * P::count(a.dim) * P::size(a.inner), whole, false,
                   {out + j * stride, columns, units.size * columns}}, true);
  }
  const T* image(std::int64_t row) const {
    return static_cast<const T*>(a.target) + row / a.together % a.batch * a.dim;
  }
  // Runs body(row, rows, room for the planes) for tiles of like heights; there are `count` planes in all.
  template <class Body>
  void for_each_tile(int count, Body&& body) const {
    parallel_for(units.count, product_bytes<T>(a.rows, a.inner, count * stride), a.threads,
                 [&](std::int64_t begin, std::int64_t end) {
                   T* const room = static_cast<T*>(tile_room());
                   const std::int64_t step = units.whole ? units.size : 1, most = most_rows / step;
                   const std::int64_t last = units.end(end) / step;
                   std::int64_t row = units.end(begin) / step;
                   for (std::int64_t left = (last - row + most - 1) / most; left > 0; --left) {
                     const std::int64_t rows = (last - row + left - 1) / left;
                     body(row * step, rows * step, room);
                     row += rows;
                   }
                 });
  }

 private:
  std::int64_t rows_that_fit() const {
    const std::int64_t limit = tile_bytes / (columns * std::int64_t(sizeof(T))), tile = P::tile(a.inner);
    return limit < tile ? limit : tile;
  }
};

template <class Family, class T>
void run(const ImportanceLinear& a) {
  using Add = AddRows<Family, T>;
  const Planes<T> planes(a, Add::planes);
  planes.for_each_tile(Add::planes, [&](std::int64_t row, std::int64_t rows, T* parameters) {
    planes.make(row, rows, 0, Add::planes, parameters);
    auto image = [&](std::int64_t r) { return planes.image(row + r); };
    Add::add(parameters, planes.stride, rows, image, a.dim, a.total + row);
  });
}

// The same for 256 levels, of which a few are made for all rows before the next few are: a weight of so
// many planes is read once a tile, and a tile of whole rows would be small.
template <class T>
void run_categorical(const ImportanceLinear& a) {
  using S = Simd<T>;
  const Planes<T> planes(a, planes_at_once);
  const std::int64_t stride = planes.stride;
  planes.for_each_tile(levels, [&](std::int64_t row, std::int64_t rows, T* logits) {
    const Scratch scratch(rows * 4 * stride * std::int64_t(sizeof(T)));
    auto state = [&](std::int64_t r) {
      return RowOfLevels<T>{static_cast<T*>(scratch.get()) + r * 4 * stride, stride};
    };
    for (std::int64_t r = 0; r < rows; ++r) state(r).start(planes.image(row + r), a.dim);
    for (int level = 0; level < levels; level += planes_at_once) {
      planes.make(row, rows, level, planes_at_once, logits);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < a.dim; i += S::lanes)
          state(r).merge(level, i, logits + r * planes.columns + i);
    }
    for (std::int64_t r = 0; r < rows; ++r) a.total[row + r] += state(r).log_likelihood(a.dim);
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
