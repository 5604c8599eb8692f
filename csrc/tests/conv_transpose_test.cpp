// Transposed convolutions against sums in long double, and images that must not reach each other.
#include "testing.hpp"

namespace lipvae::testing {
namespace {

using Real = long double;

struct Sizes {
  std::int64_t batch, height, width, in, out, kernel_height, kernel_width, stride_height, stride_width;
  std::int64_t padding_height, padding_width, more_height, more_width;
  std::int64_t out_height() const {
    return (height - 1) * stride_height - 2 * padding_height + kernel_height + more_height;
  }
  std::int64_t out_width() const {
    return (width - 1) * stride_width - 2 * padding_width + kernel_width + more_width;
  }
};

template <class T>
ConvTranspose arguments(const Sizes& s, const T* x, const T* panels, const T* bias, T* out,
                        std::int64_t batch, bool relu, int threads) {
  return {x, panels, bias, out, batch, s.height, s.width, s.in, s.out_height(), s.out_width(), s.out,
          s.kernel_height, s.kernel_width, s.stride_height, s.stride_width, s.padding_height,
          s.padding_width, relu, dtype<T>, threads};
}

template <class T>
void check(const KernelTable& kernels, const Sizes& s, bool relu, int threads, double zeros = 0.0) {
  const std::string name = describe<T>(kernels, "conv_transpose", s.batch, s.height, s.width, s.in, s.out,
                                       s.kernel_height, s.stride_width, s.padding_height);
  const std::int64_t taps = s.kernel_height * s.kernel_width * s.out;
  const std::int64_t height = s.out_height(), width = s.out_width();
  const std::int64_t in_size = s.height * s.width * s.in, out_size = height * width * s.out;
  Buffer<T> x = normals<T>(s.batch * in_size);
  for (std::int64_t i = 0; i < in_size; ++i)  // as a ReLU leaves samples of one image
    if (uniform() < zeros)
      for (std::int64_t b = 0; b < s.batch; ++b) x[b * in_size + i] = T(0);
  const Buffer<T> weight = normals<T>(taps * s.in), bias = normals<T>(s.out);
  const T* shift = s.out % 2 ? bias.data() : nullptr;
  const std::int64_t panel = kernels.panel_width(dtype<T>);
  Buffer<T> panels((taps + panel - 1) / panel * (1 + s.in) * panel);
  kernels.linear_pack({weight.data(), nullptr, panels.data(), 1, taps, taps, s.in, dtype<T>, 1});
  Buffer<T> out(s.batch * out_size), again(s.batch * out_size), alone(out_size);
  kernels.conv_transpose(arguments(s, x.data(), panels.data(), shift, out.data(), s.batch, relu, threads));

  std::vector<Real> sum(std::size_t(s.batch * out_size)), size(sum.size());
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t i = 0; i < height * width; ++i)
      for (std::int64_t c = 0; c < s.out; ++c) {
        sum[b * out_size + i * s.out + c] = shift ? shift[c] : 0;
        size[b * out_size + i * s.out + c] = shift ? std::fabs(shift[c]) : 0;
      }
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t y = 0; y < s.height; ++y)
      for (std::int64_t at = 0; at < s.width; ++at)
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          const std::int64_t ky = tap / s.out / s.kernel_width, kx = tap / s.out % s.kernel_width;
          const std::int64_t to_y = y * s.stride_height + ky - s.padding_height;
          const std::int64_t to_x = at * s.stride_width + kx - s.padding_width;
          if (to_y < 0 || to_y >= height || to_x < 0 || to_x >= width) continue;
          const std::int64_t to = b * out_size + (to_y * width + to_x) * s.out + tap % s.out;
          for (std::int64_t i = 0; i < s.in; ++i) {
            const Real term = Real(x[b * in_size + (y * s.width + at) * s.in + i]) * weight[tap * s.in + i];
            sum[to] += term;
            size[to] += std::fabs(term);
          }
        }
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const Real truth = relu && sum[i] < 0 ? 0 : sum[i];
    expect(std::fabs(out[i] - truth) <= 16 * epsilon<T> * size[i], name + ": sum");
  }

  kernels.conv_transpose(
      arguments(s, x.data(), panels.data(), shift, again.data(), s.batch, relu, threads == 1 ? 3 : 1));
  expect(again.same_bits(out), name + ": other threads");
  for (std::int64_t b = 0; b < s.batch; ++b) {
    kernels.conv_transpose(
        arguments(s, x.data() + b * in_size, panels.data(), shift, alone.data(), 1, relu, 1));
    expect(std::memcmp(alone.data(), out.data() + b * out_size, alone.bytes()) == 0, name + ": an image alone");
  }
}

template <class T>
void check_all(const KernelTable& kernels) {
  for (std::int64_t out : {1, 2, 3, 8, 9, 17})
    for (bool relu : {false, true}) check<T>(kernels, {5, 3, 4, 5, out, 4, 4, 2, 2, 1, 1, 1, 0}, relu, 1);
  check<T>(kernels, {3, 2, 3, 4, 3, 2, 3, 1, 1, 0, 0, 0, 0}, false, 1);
  check<T>(kernels, {3, 4, 3, 2, 2, 3, 5, 3, 2, 1, 2, 2, 1}, true, 1);
  check<T>(kernels, {2, 3, 3, 2, 1, 2, 2, 4, 3, 0, 0, 3, 2}, false, 1);  // places that no tap reaches
  check<T>(kernels, {2, 5, 5, 2, 1, 3, 3, 1, 1, 2, 2, 0, 0}, false, 1);  // taps that fall outside
  check<T>(kernels, {2, 1, 1, 0, 3, 2, 2, 1, 1, 0, 0, 0, 0}, false, 1);  // nothing but the bias
  check<T>(kernels, {3, 9, 11, 3, 70, 5, 5, 2, 2, 2, 2, 1, 1}, true, 1);  // an image in parts
  check<T>(kernels, {7, 5, 9, 3, 60, 3, 3, 4, 4, 0, 0, 2, 1}, false, 1);  // in parts, with places between
  check<T>(kernels, {7, 6, 9, 3, 60, 5, 3, 1, 2, 1, 0, 0, 1}, true, 2);
  for (std::int64_t out : {1, 3, 6, 30}) check<T>(kernels, {3, 5, 6, 3, out, 5, 5, 2, 3, 1, 1, 1, 0}, true, 1);
  check<T>(kernels, {40, 4, 4, 16, 8, 4, 4, 2, 2, 1, 1, 0, 0}, true, 4);
  check<T>(kernels, {17, 3, 5, 40, 9, 4, 4, 2, 2, 1, 1, 0, 0}, false, 1, 0.5);
  check<T>(kernels, {9, 9, 11, 30, 70, 5, 5, 2, 2, 2, 2, 1, 1}, true, 3, 0.7);
}

}  // namespace

void test_conv_transpose(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
