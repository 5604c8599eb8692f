// Packed products against sums in long double, and rows that must not reach each other.
#include "testing.hpp"

namespace lipvae::testing {
namespace {

using Real = long double;

template <class T>
struct Packed {
  std::int64_t width;
  Buffer<T> panels;
};

template <class T>
Packed<T> pack(const KernelTable& kernels, const Buffer<T>& weight, const T* bias, std::int64_t planes,
               std::int64_t columns, std::int64_t inner, int threads) {
  const std::int64_t width = kernels.panel_width(dtype<T>);
  Packed<T> packed{width, Buffer<T>(planes * ((columns + width - 1) / width) * (1 + inner) * width)};
  kernels.linear_pack(
      {weight.data(), bias, packed.panels.data(), planes, columns, columns, inner, dtype<T>, threads});
  return packed;
}

// Columns of x that are zero in most rows, or in all, as a ReLU makes them: a part `zeros` of them.
template <class T>
void switch_off(Buffer<T>& x, std::int64_t inner, double zeros) {
  for (std::int64_t c = 0; c < inner; ++c) {
    if (uniform() >= zeros) continue;
    const bool everywhere = uniform() < 0.8;
    for (std::int64_t i = c; i < x.size(); i += inner)
      if (everywhere || uniform() < 0.9) x[i] = T(i % 2 ? 0.0 : -0.0);
  }
}

template <class T>
void check_linear(const KernelTable& kernels, std::int64_t rows, std::int64_t columns, std::int64_t inner,
                  bool relu, int threads, double zeros = 0.0) {
  const std::string name = describe<T>(kernels, "linear", rows, columns, inner, threads, std::int64_t(100 * zeros));
  Buffer<T> x = normals<T>(rows * inner);
  switch_off(x, inner, zeros);
  const Buffer<T> weight = normals<T>(columns * inner), bias = normals<T>(columns);
  const T* shift = columns % 2 ? bias.data() : nullptr;
  const Packed<T> packed = pack(kernels, weight, shift, 1, columns, inner, threads);
  Buffer<T> out(rows * columns), again(rows * columns), alone(columns);
  kernels.linear({x.data(), packed.panels.data(), out.data(), rows, columns, inner, relu, dtype<T>, threads});
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      Real sum = shift ? shift[c] : 0, size = std::fabs(sum);
      for (std::int64_t i = 0; i < inner; ++i) {
        const Real term = Real(x[r * inner + i]) * weight[c * inner + i];
        sum += term;
        size += std::fabs(term);
      }
      if (relu && sum < 0) sum = 0;
      // At most 256 terms in a chain, each rounded to half an epsilon of the sum so far.
      expect(std::fabs(out[r * columns + c] - sum) <= 16 * epsilon<T> * size, name + ": sum");
    }
  kernels.linear({x.data(), packed.panels.data(), again.data(), rows, columns, inner, relu, dtype<T>,
                  threads == 1 ? 3 : 1});
  expect(again.same_bits(out), name + ": other threads");
  for (std::int64_t r = 0; r < rows; r += 5) {  // one row alone takes all terms
    kernels.linear({x.data() + r * inner, packed.panels.data(), alone.data(), 1, columns, inner, relu,
                    dtype<T>, 1});
    expect(std::memcmp(alone.data(), out.data() + r * columns, alone.bytes()) == 0, name + ": a row alone");
  }
}

// The fused op against the product and importance, one after the other.
template <class T>
void check_importance_linear(const KernelTable& kernels, Family family, std::int64_t samples,
                             std::int64_t batch, std::int64_t dim, std::int64_t inner, int threads) {
  const std::string name = describe<T>(kernels, "importance_linear", int(family), samples, batch, dim, inner);
  const std::int64_t planes = planes_of(family), rows = samples * batch;
  const double scale = 1 / std::sqrt(double(inner) + 1);
  Buffer<T> hidden = normals<T>(rows * inner), by_image(rows * inner);
  switch_off(hidden, inner, 0.4);
  for (std::int64_t r = 0; r < rows; ++r)
    std::memcpy(by_image.data() + (r % batch * samples + r / batch) * inner, hidden.data() + r * inner,
                std::size_t(inner) * sizeof(T));
  const Buffer<T> target = pixels<T>(batch * dim);
  const Buffer<T> weight = normals<T>(planes * dim * inner, scale), bias = normals<T>(planes * dim, 0.3);
  const Packed<T> packed = pack(kernels, weight, bias.data(), planes, dim, inner, threads);
  Buffer<T> parameters(rows * planes * dim), truth(rows);
  const Packed<T> flat = pack(kernels, weight, bias.data(), 1, planes * dim, inner, 1);
  kernels.linear({hidden.data(), flat.panels.data(), parameters.data(), rows, planes * dim, inner, false,
                  dtype<T>, 1});
  kernels.importance({parameters.data(), target.data(), truth.data(), samples, batch, dim, family, dtype<T>, 1});
  Buffer<double> total(rows), again(rows);
  kernels.importance_linear({hidden.data(), packed.panels.data(), target.data(), total.data(), rows, batch,
                             dim, inner, 1, family, dtype<T>, threads});
  for (std::int64_t r = 0; r < rows; ++r)
    expect(std::fabs(total[r] - truth[r]) <= 4 * epsilon<T> * (double(dim) + std::fabs(total[r])),
           name + ": sum");
  kernels.importance_linear({hidden.data(), packed.panels.data(), target.data(), again.data(), rows, batch,
                             dim, inner, 1, family, dtype<T>, threads == 1 ? 3 : 1});
  expect(again.same_bits(total), name + ": other threads");
  Buffer<double> image_totals(rows);
  kernels.importance_linear({by_image.data(), packed.panels.data(), target.data(), image_totals.data(), rows,
                             batch, dim, inner, samples, family, dtype<T>, threads});
  for (std::int64_t r = 0; r < rows; ++r)
    expect(image_totals[r % batch * samples + r / batch] == total[r], name + ": images first");
}

// A weight that is not finite, where x is zero in its place.
template <class T>
void check_not_finite(const KernelTable& kernels) {
  const std::int64_t rows = 12, columns = 200, inner = 40, bad = 77;
  Buffer<T> x = normals<T>(rows * inner), weight = normals<T>(columns * inner), out(rows * columns);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 5; i < 20; ++i) x[r * inner + i] = T(0);
  for (T value : {std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN()}) {
    weight[bad * inner + 7] = value;
    const Packed<T> packed = pack<T>(kernels, weight, nullptr, 1, columns, inner, 1);
    kernels.linear({x.data(), packed.panels.data(), out.data(), rows, columns, inner, true, dtype<T>, 1});
    for (std::int64_t i = 0; i < rows * columns; ++i)
      expect(std::isnan(out[i]) == (i % columns == bad), describe<T>(kernels, "linear, weight not finite", i));
  }
}

template <class T>
void check_all(const KernelTable& kernels) {
  for (std::int64_t rows : {1, 2, 5, 6, 7, 13, 25})
    for (std::int64_t columns : {1, 7, 8, 15, 16, 17, 33}) check_linear<T>(kernels, rows, columns, 19, true, 1);
  for (std::int64_t inner : {0, 1, 255, 256, 257, 511, 513, 1030}) check_linear<T>(kernels, 14, 21, inner, false, 1);
  check_linear<T>(kernels, 301, 130, 300, true, 4);
  check_not_finite<T>(kernels);
  for (double zeros : {0.1, 0.3, 0.8, 1.0}) {
    for (std::int64_t rows : {2, 3, 6, 7, 11, 50}) check_linear<T>(kernels, rows, 150, 40, false, 1, zeros);
    for (std::int64_t inner : {15, 16, 17, 256, 257, 511, 513, 1030})
      check_linear<T>(kernels, 23, 97, inner, true, 1, zeros);
    check_linear<T>(kernels, 301, 130, 300, false, 4, zeros);
  }
  for (int code = 0; code < 5; ++code) {
    const auto family = Family(code);
    for (std::int64_t dim : {1, 7, 16, 17, 40}) check_importance_linear<T>(kernels, family, 3, 2, dim, 9, 1);
    check_importance_linear<T>(kernels, family, 17, 9, 51, 70, 4);
    check_importance_linear<T>(kernels, family, 8, 5, 120, 33, 2);
  }
}

}  // namespace

void test_linear(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
