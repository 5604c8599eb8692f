// The fused layer against l1_ball, linear and group_sort one after the other: equal up to the bit.
#include "networks.hpp"
#include "testing.hpp"

namespace lipvae::testing {
namespace {

bool close(double value, double truth, double tolerance) {
  return truth != truth ? value != value : std::abs(value - truth) <= tolerance;
}

struct Shape {
  std::int64_t rows, columns, inner;
  int group_size;  // 0: no sort
  int threads;
  bool sparse = false;  // few rows inside the ball
};

// The entries are those of `projected`.
template <class T>
void check_list(const Shape& s, const std::string& name, const Buffer<T>& projected,
                const Buffer<std::int64_t>& entries) {
  const std::int64_t* extent = entries.data();
  const T* values = reinterpret_cast<const T*>(extent + 2 * s.columns);
  const auto* index = reinterpret_cast<const std::int32_t*>(values + entries_places(s.columns, s.inner));
  Buffer<T> rebuilt(projected.size());
  for (std::int64_t c = 0; c < s.columns; ++c) {
    expect(extent[2 * c + 1] <= entries_places(s.columns, s.inner), name + ": places");
    for (std::int64_t e = extent[2 * c]; e < extent[2 * c + 1]; ++e) {
      expect(e == extent[2 * c] || index[e] > index[e - 1], name + ": ascending");
      rebuilt[c * s.inner + index[e]] = values[e];
    }
  }
  // As numbers: a zero that is left out has lost its sign.
  bool same = true;
  for (std::int64_t i = 0; i < projected.size(); ++i)
    same &= rebuilt[i] == projected[i] || (rebuilt[i] != rebuilt[i] && projected[i] != projected[i]);
  expect(same, name + ": entries");
}

// What the layer made for its backward pass.
template <class T>
struct Made {
  const Buffer<T>&x, &weight, &projected;
  const Buffer<double>& threshold;
  const std::uint8_t* code;
  const void* entries;  // or null
};

// Gradients against those of the dense products in double.
template <class T>
void check_gradients(const KernelTable& kernels, const Shape& s, const std::string& name, const Made<T>& made) {
  const Buffer<T>&x = made.x, &projected = made.projected;
  const Buffer<double>& threshold = made.threshold;
  const Buffer<T> grad_y = normals<T>(s.rows * s.columns);
  Buffer<T> grad(grad_y.size()), grad_x(s.rows * s.inner), grad_weight(s.columns * s.inner), grad_bias(s.columns);
  if (s.group_size)
    kernels.group_sort_backward({grad_y.data(), made.code, grad.data(), s.rows, s.columns, 1, s.group_size,
                                 dtype<T>, 1});
  else
    std::copy(grad_y.data(), grad_y.data() + grad_y.size(), grad.data());
  LipschitzLinearBackward call{};
  call.grad = grad_y.data();
  call.code = s.group_size ? made.code : nullptr;
  call.group_size = s.group_size;
  call.x = x.data();
  call.weight = made.weight.data();
  call.entries = made.entries;
  call.threshold = threshold.data();
  call.grad_x = grad_x.data();
  call.grad_weight = grad_weight.data();
  call.grad_bias = grad_bias.data();
  call.rows = s.rows;
  call.columns = s.columns;
  call.inner = s.inner;
  call.dtype = dtype<T>;
  call.threads = s.threads;
  kernels.lipschitz_linear_backward(call);
  for (std::int64_t r = 0; r < s.rows; ++r)
    for (std::int64_t i = 0; i < s.inner; ++i) {
      double truth = 0.0, size = 0.0;
      for (std::int64_t c = 0; c < s.columns; ++c) {
        const double term = double(grad[r * s.columns + c]) * double(projected[c * s.inner + i]);
        truth += term;
        size += std::abs(term);
      }
      expect(close(grad_x[r * s.inner + i], truth, double(s.columns) * epsilon<T> * size), name + ": grad x");
    }
  for (std::int64_t c = 0; c < s.columns; ++c) {
    std::vector<double> sums(std::size_t(s.inner), 0.0);
    double mean = 0.0, size = 0.0, count = 0.0, bias = 0.0, bias_size = 0.0;
    for (std::int64_t r = 0; r < s.rows; ++r) {
      bias += double(grad[r * s.columns + c]);
      bias_size += std::abs(double(grad[r * s.columns + c]));
    }
    expect(close(grad_bias[c], bias, double(s.rows) * epsilon<T> * bias_size), name + ": grad bias");
    for (std::int64_t i = 0; i < s.inner; ++i) {
      for (std::int64_t r = 0; r < s.rows; ++r)
        sums[std::size_t(i)] += double(grad[r * s.columns + c]) * double(x[r * s.inner + i]);
      const double w = double(projected[c * s.inner + i]);
      if (w != 0.0) {
        mean += std::copysign(1.0, w) * sums[std::size_t(i)];
        count += 1.0;
      }
    }
    for (std::int64_t r = 0; r < s.rows; ++r)
      for (std::int64_t i = 0; i < s.inner; ++i)
        size = std::max(size, std::abs(double(grad[r * s.columns + c]) * double(x[r * s.inner + i])));
    const double tolerance = double(s.rows + 4) * double(s.rows) * epsilon<T> * size;
    for (std::int64_t i = 0; i < s.inner; ++i) {
      const double w = double(projected[c * s.inner + i]);
      double truth = threshold[c] == 0.0 ? sums[std::size_t(i)] : 0.0;
      if (threshold[c] > 0.0 && w != 0.0) truth = sums[std::size_t(i)] - std::copysign(1.0, w) * mean / count;
      if (threshold[c] != threshold[c]) truth = threshold[c];
      expect(close(grad_weight[c * s.inner + i], truth, tolerance), name + ": grad weight");
    }
  }
  // One alone is the same, to the bit, with one thread too.
  Buffer<T> x_alone(grad_x.size()), weight_alone(grad_weight.size()), bias_alone(s.columns);
  const struct {
    void *x, *weight, *bias;
  } asked[] = {{x_alone.data(), nullptr, nullptr},
               {nullptr, weight_alone.data(), nullptr},
               {nullptr, nullptr, bias_alone.data()}};
  call.threads = 1;
  for (const auto& wish : asked) {
    call.grad_x = wish.x;
    call.grad_weight = wish.weight;
    call.grad_bias = wish.bias;
    kernels.lipschitz_linear_backward(call);
  }
  expect(x_alone.same_bits(grad_x), name + ": grad x alone");
  expect(weight_alone.same_bits(grad_weight), name + ": grad weight alone");
  expect(bias_alone.same_bits(grad_bias), name + ": grad bias alone");
}

template <class T>
void check(const KernelTable& kernels, const Shape& s, double radius) {
  const std::string name = describe<T>(kernels, "lipschitz_linear", s.rows, s.columns, s.inner, s.group_size);
  const Buffer<T> x = normals<T>(s.rows * s.inner), bias = normals<T>(s.columns);
  Buffer<T> weight = normals<T>(s.columns * s.inner);
  // Inside the ball, with zeros of both signs.
  for (std::int64_t c = s.sparse ? 20 : 0; c < s.columns; c += s.sparse ? 64 : 3)
    for (std::int64_t i = 0; i < s.inner; ++i) weight[c * s.inner + i] *= T(i % 2 ? 1e-6 * radius : -0.0);
  if (s.columns > 4 && s.inner > 0)
    weight[(s.sparse ? s.columns - 1 : 4) * s.inner] = std::numeric_limits<T>::quiet_NaN();
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

  // 4: what may come as a list of entries.
  for (int kept = 0; kept < 5; ++kept) {
    Buffer<T> got(y.size()), got_panels(packed);
    Buffer<std::int64_t> entries(entries_bytes(s.columns, s.inner, dtype<T>) / 8 + 1);
    bool listed = false;
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
    call.panels = kept & 2 ? got_panels.data() : nullptr;
    call.group_size = s.group_size;
    call.code = s.group_size && kept != 3 ? got_code.data() : nullptr;
    call.rows = s.rows;
    call.columns = s.columns;
    call.inner = s.inner;
    call.dtype = dtype<T>;
    call.threads = kept == 2 ? 1 : s.threads;
    call.entries = kept == 4 ? entries.data() : nullptr;
    call.listed = &listed;
    kernels.lipschitz_linear(call);
    expect(got.same_bits(y), name + ": values");
    expect(got_threshold.same_bits(threshold), name + ": thresholds");
    expect(!listed || !call.panels, name + ": a list beside panels");
    expect(!s.sparse || listed == !call.panels, name + ": no list of few entries");
    if (listed && kept == 4) check_list<T>(s, name, projected, entries);
    if (kept == 4 || (kept == 0 && listed))
      check_gradients<T>(kernels, s, name, {x, weight, projected, threshold, got_code.data(),
                                            listed && kept == 4 ? entries.data() : nullptr});
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
  for (std::int64_t rows : {0, 1, 3, 17, 40, 64, 70, 128, 300})
    check<T>(kernels, {rows, 136, 300, int(rows % 4 == 0 ? 8 : 0), 1 + int(rows % 3), true}, 1.1);
  check<T>(kernels, {50, 24, 1037, 2, 2, true}, 3.0);  // several chains
}

}  // namespace

void test_lipschitz_linear(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
