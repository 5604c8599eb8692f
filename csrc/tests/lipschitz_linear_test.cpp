// The fused layer against l1_ball, linear and group_sort one after the other: equal up to the bit.
#include "testing.hpp"

namespace lipvae::testing {
namespace {

int comparators(int group_size) { return group_size == 2 ? 1 : group_size == 4 ? 5 : 19; }

struct Shape {
  std::int64_t rows, columns, inner;
  int group_size;  // 0: no sort
  int threads;
};

template <class T>
void check(const KernelTable& kernels, const Shape& s, double radius) {
  const std::string name = describe<T>(kernels, "lipschitz_linear", s.rows, s.columns, s.inner, s.group_size);
  const Buffer<T> x = normals<T>(s.rows * s.inner), bias = normals<T>(s.columns);
  Buffer<T> weight = normals<T>(s.columns * s.inner);
  for (std::int64_t c = 0; c < s.columns; c += 3)  // rows inside the ball, with zeros of both signs
    for (std::int64_t i = 0; i < s.inner; ++i) weight[c * s.inner + i] *= T(i % 2 ? 1e-6 * radius : -0.0);
  if (s.columns > 4 && s.inner > 0) weight[4 * s.inner] = std::numeric_limits<T>::quiet_NaN();
  const T* shift = s.columns % 2 ? nullptr : bias.data();
  const std::int64_t width = kernels.panel_width(dtype<T>);
  const std::int64_t packed = (s.columns + width - 1) / width * width * (1 + s.inner);
  const std::int64_t bytes = s.group_size ? (s.columns / s.group_size + 7) / 8 : 0;
  const std::int64_t bits = s.group_size ? comparators(s.group_size) * s.rows * bytes : 0;

  Buffer<T> projected(s.columns * s.inner), panels(packed), y(s.rows * s.columns);
  Buffer<double> threshold(s.columns), warm(s.columns);
  Buffer<std::uint8_t> code(bits);
  kernels.l1_ball({weight.data(), s.columns, s.inner, radius, nullptr, projected.data(), threshold.data(),
                   dtype<T>, 1});
  kernels.linear_pack({projected.data(), shift, panels.data(), 1, s.columns, s.columns, s.inner, dtype<T>, 1});
  kernels.linear({x.data(), panels.data(), y.data(), s.rows, s.columns, s.inner, false, dtype<T>, 1});
  if (s.group_size)
    kernels.group_sort({y.data(), y.data(), code.data(), s.rows, s.columns, 1, s.group_size, dtype<T>, 1});
  for (std::int64_t c = 0; c < s.columns; ++c) warm[c] = threshold[c] * (0.5 + uniform());

  for (int kept = 0; kept < 4; ++kept) {
    Buffer<T> got(y.size()), got_projected(projected.size()), got_panels(packed);
    Buffer<double> got_threshold(s.columns);
    Buffer<std::uint8_t> got_code(bits);
    LipschitzLinear call{};
    call.x = x.data();
    call.weight = weight.data();
    call.bias = shift;
    call.radius = radius;
    call.warm = kept % 2 ? warm.data() : nullptr;
    call.y = got.data();
    call.threshold = got_threshold.data();
    call.projected = kept & 1 ? got_projected.data() : nullptr;
    call.panels = kept & 2 ? got_panels.data() : nullptr;
    call.group_size = s.group_size;
    call.code = s.group_size && kept != 3 ? got_code.data() : nullptr;
    call.rows = s.rows;
    call.columns = s.columns;
    call.inner = s.inner;
    call.dtype = dtype<T>;
    call.threads = kept == 2 ? 1 : s.threads;
    kernels.lipschitz_linear(call);
    expect(got.same_bits(y), name + ": values");
    expect(got_threshold.same_bits(threshold), name + ": thresholds");
    expect(!call.projected || got_projected.same_bits(projected), name + ": projected weight");
    expect(!call.panels || got_panels.same_bits(panels), name + ": panels");
    expect(!call.code || got_code.same_bits(code), name + ": code");
  }
  // The product of packed panels, sorted in the same way.
  Buffer<T> again(y.size());
  Linear product{x.data(), panels.data(), again.data(), s.rows, s.columns, s.inner, false, dtype<T>, s.threads};
  product.group_size = s.group_size;
  kernels.linear(product);
  expect(again.same_bits(y), name + ": packed");
}

template <class T>
void check_all(const KernelTable& kernels) {
  for (int g : {0, 2, 4, 8})
    for (std::int64_t groups : {1, 3, 9}) {
      const std::int64_t columns = groups * (g ? g : 1);
      for (std::int64_t rows : {0, 1, 7, 141}) check<T>(kernels, {rows, columns, 33, g, 3}, 0.7);
      check<T>(kernels, {5, columns, 0, g, 1}, 1.0);
      check<T>(kernels, {5, columns, 19, g, 1}, 1e-7);  // far below the largest entry
    }
  check<T>(kernels, {301, 136, 530, 4, 4}, 2.0);
  check<T>(kernels, {128, 264, 1001, 8, 5}, 1.3);
  check<T>(kernels, {3, 0, 5, 2, 2}, 1.0);
}

}  // namespace

void test_lipschitz_linear(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
