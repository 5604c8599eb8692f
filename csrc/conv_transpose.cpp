// A transposed convolution of images that lie channels last: a product of every pixel with all taps, in
// the cache, and the taps' sums.
#include "isa_kernels.hpp"
#include "panels.hpp"
#include "parallel.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

// Adds `count` runs of `channels` numbers, each to its place. Nothing beyond the ends is touched; within
// them a vector's last lanes may add zero to what comes after a run, for masked stores are slow.
template <class T>
LIPVAE_INLINE void add_runs(const T* from, std::int64_t from_stride, const T* from_end, T* to,
                            std::int64_t to_stride, const T* to_end, std::int64_t count,
                            std::int64_t channels) {
  using S = Simd<T>;
  if (channels == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i * to_stride] += from[i * from_stride];
    return;
  }
  const std::int64_t whole = channels / S::lanes * S::lanes, rest = channels - whole;
  const typename S::I last = S::first(rest);
  for (std::int64_t i = 0; i < count; ++i) {
    const T* a = from + i * from_stride;
    T* b = to + i * to_stride;
    for (std::int64_t c = 0; c < whole; c += S::lanes) S::store(b + c, S::load(b + c) + S::load(a + c));
    if (!rest) continue;
    if (from_end - a >= whole + S::lanes && to_end - b >= whole + S::lanes)
      S::store(b + whole, S::load(b + whole) + S::keep(last, S::load(a + whole)));
    else
      S::store_first(b + whole, S::load_first(b + whole, rest) + S::load_first(a + whole, rest), rest);
  }
}

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return a > 0 ? (a + b - 1) / b : 0; }

// Adds what the input pixels [first, last) of one image say to the output: `taps` has a row for each, the
// channels of one tap after those of the last.
template <class T>
void add_taps(const ConvTranspose& a, const T* taps, std::int64_t columns, std::int64_t first,
              std::int64_t last, T* out) {
  const std::int64_t channels = a.out_channels;
  const T *taps_end = taps + (last - first) * columns, *out_end = out + a.out_height * a.out_width * channels;
  for (std::int64_t pixel = first; pixel < last;) {
    const std::int64_t y = pixel / a.width, begin = pixel % a.width;
    const std::int64_t end = begin + (last - pixel) < a.width ? begin + (last - pixel) : a.width;
    for (std::int64_t ky = 0; ky < a.kernel_height; ++ky) {
      const std::int64_t to_y = y * a.stride_height + ky - a.padding_height;
      if (to_y < 0 || to_y >= a.out_height) continue;
      for (std::int64_t kx = 0; kx < a.kernel_width; ++kx) {
        const std::int64_t shift = kx - a.padding_width;  // to_x = x stride + shift
        std::int64_t x = ceil_divide(-shift, a.stride_width);
        if (x < begin) x = begin;
        std::int64_t stop = ceil_divide(a.out_width - shift, a.stride_width);
        if (stop > end) stop = end;
        if (x >= stop) continue;
        const T* from = taps + (pixel - first + x - begin) * columns + (ky * a.kernel_width + kx) * channels;
        T* to = out + (to_y * a.out_width + x * a.stride_width + shift) * channels;
        add_runs(from, columns, taps_end, to, a.stride_width * channels, out_end, stop - x, channels);
      }
    }
    pixel += end - begin;
  }
}

template <class T>
void run(const ConvTranspose& a) {
  using S = Simd<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* panels = static_cast<const T*>(a.panels);
  const T* bias = static_cast<const T*>(a.bias);
  T* out = static_cast<T*>(a.out);
  const std::int64_t pixels = a.height * a.width, out_size = a.out_height * a.out_width * a.out_channels;
  const std::int64_t taps = a.kernel_height * a.kernel_width * a.out_channels;
  const std::int64_t columns = (taps + S::lanes - 1) / S::lanes * S::lanes;
  const std::int64_t fit = taps_bytes / (columns * std::int64_t(sizeof(T)));
  // Whole images, or parts of one: where a part ends must not depend on the images before.
  const std::int64_t together = fit >= pixels && pixels ? fit / pixels : 1;
  const std::int64_t part = fit < pixels ? fit : pixels;
  const double bytes = product_bytes<T>(a.batch * pixels, a.in_channels, columns);
  parallel_for(a.batch, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) T buffer[taps_bytes / sizeof(T)];
    for (std::int64_t image = begin; image < end; image += together) {
      const std::int64_t images = end - image < together ? end - image : together;
      T* to = out + image * out_size;
      for (std::int64_t i = 0; i < images * out_size; i += a.out_channels)
        for (std::int64_t c = 0; c < a.out_channels; ++c) to[i + c] = bias ? bias[c] : T(0);
      const T* from = x + image * pixels * a.in_channels;
      for (std::int64_t first = 0; first < pixels; first += part) {
        const std::int64_t last = first + part < pixels ? first + part : pixels;
        const std::int64_t rows = together > 1 ? images * pixels : last - first;
        multiply(from + first * a.in_channels, rows, a.in_channels, panels, columns, false, buffer, columns);
        for (std::int64_t i = 0; i < images; ++i)
          add_taps(a, buffer + i * pixels * columns, columns, first, last, to + i * out_size);
      }
      if (a.relu) {
        const std::int64_t size = images * out_size, whole = size / S::lanes * S::lanes;
        const typename S::V zero{};  // the first operand: a NaN passes
        for (std::int64_t i = 0; i < whole; i += S::lanes) S::store(to + i, S::max(zero, S::load(to + i)));
        for (std::int64_t i = whole; i < size; ++i) to[i] = T(0) > to[i] ? T(0) : to[i];
      }
    }
  });
}

}  // namespace

void conv_transpose(const ConvTranspose& a) {
  if (a.batch * a.out_height * a.out_width * a.out_channels == 0) return;
  if (a.dtype == DType::float32)
    run<float>(a);
  else
    run<double>(a);
}

}  // namespace lipvae::LIPVAE_ISA
