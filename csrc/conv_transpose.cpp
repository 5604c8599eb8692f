// A transposed convolution of images that lie channels last: a product of every pixel with all taps, in
// the cache, and the taps' sums.
#include "isa_kernels.hpp"
#include "panels.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace lipvae::LIPVAE_ISA {
namespace {

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return a > 0 ? (a + b - 1) / b : 0; }

// How many images, and rows of pixels of each, are multiplied at once.
template <class T>
struct Portion {
  std::int64_t columns, images, rows;

  explicit Portion(const ConvTranspose& a) {
    using P = Panel<T>;
    constexpr int lanes = Simd<T>::lanes;
    columns = (a.kernel_height * a.kernel_width * a.out_channels + lanes - 1) / lanes * lanes;
    const std::int64_t row = a.width * columns * std::int64_t(sizeof(T));
    const std::int64_t fit = row && row < taps_bytes ? taps_bytes / row : 1;
    images = fit < P::rows ? fit : P::rows;
    rows = fit / images < a.height ? fit / images : a.height;
    if (rows == a.height) images = fit / rows < 2 * P::rows ? fit / rows : 2 * P::rows;
  }
  std::int64_t bytes(const ConvTranspose& a) const {
    return (images * rows * a.width * columns + Simd<T>::lanes) * std::int64_t(sizeof(T));
  }
};

// Adds up the taps that reach the rows of one image. A tap row is that of one input pixel, whose taps for
// one row of the output, all channels of one place after those of the last, lie in a row there too.
template <class T>
class TapSums {
 public:
  using S = Simd<T>;

  // `line` has room for a row of the output and a vector, `pattern` for a segment and a vector.
  TapSums(const ConvTranspose& arguments, std::int64_t columns, T* line, T* pattern)
      : a_(arguments), columns_(columns), segment_(a_.stride_width * a_.out_channels),
        whole_(a_.kernel_width / a_.stride_width), rest_(a_.kernel_width % a_.stride_width * a_.out_channels),
        line_(line), pattern_(pattern) {
    const std::int64_t reached = whole_ + (rest_ > 0) - 1, inside = ceil_divide(a_.padding_width, a_.stride_width);
    inner_begin_ = reached > inside ? reached : inside;
    const T* const bias = static_cast<const T*>(a_.bias);
    for (std::int64_t i = 0; i < segment_; ++i) pattern_[i] = bias ? bias[i % a_.out_channels] : T(0);
    for (std::int64_t i = segment_; i < segment_ + S::lanes; ++i) pattern_[i] = T(0);
  }
  static std::int64_t line_size(const ConvTranspose& a) { return a.out_width * a.out_channels + S::lanes; }
  static std::int64_t pattern_size(const ConvTranspose& a) { return a.stride_width * a.out_channels + S::lanes; }

  // Of the input rows [begin, end) to one image of the output, which has what rows before them say.
  void add(const T* taps, std::int64_t begin, std::int64_t end, T* out) const {
    const std::int64_t size = a_.out_width * a_.out_channels;
    for (std::int64_t to_y = 0; to_y < a_.out_height; ++to_y) {
      // y stride + ky = to_y + padding
      const std::int64_t place = to_y + a_.padding_height;
      std::int64_t first = ceil_divide(place - a_.kernel_height + 1, a_.stride_height);
      std::int64_t stop = place / a_.stride_height + 1;
      if (stop > a_.height) stop = a_.height;
      T* const to = out + to_y * size;
      if (first >= stop) {  // no tap reaches it
        if (begin > 0) continue;
        add_rows({}, nullptr);
        finish(to, size, a_.relu);
        continue;
      }
      const bool fresh = first >= begin, complete = stop <= end;
      if (first < begin) first = begin;
      if (stop > end) stop = end;
      if (first >= stop) continue;
      const std::int64_t ky = place - first * a_.stride_height, row = a_.width * columns_;
      const std::int64_t of_ky = a_.kernel_width * a_.out_channels;
      add_rows({taps + (first - begin) * row + ky * of_ky, row - a_.stride_height * of_ky, stop - first},
               fresh ? nullptr : to);
      finish(to, size, a_.relu && complete);
    }
  }

 private:
  // Tap rows that reach one row of the output.
  struct Rows {
    const T* first = nullptr;
    std::int64_t step = 0, count = 0;
  };

  // Fills line_: what is in `out`, or the bias, and the rows.
  void add_rows(Rows rows, const T* out) const {
    const std::int64_t bytes = segment_ * std::int64_t(sizeof(T));
    if (vector_bytes > 32 && bytes > 32) return add_segments<vector_bytes>(rows, out);
    if (vector_bytes > 16 && bytes > 16) return add_segments<32>(rows, out);
    if (bytes > 8 || sizeof(T) == 8) return add_segments<16>(rows, out);
    add_segments<8>(rows, out);
  }

  // A segment is as long as one input pixel is ahead of the next. The j-th starts at the place j stride -
  // padding, and the i-th segment of the taps of pixel j - i is added to it.
  template <int bytes>
  void add_segments(Rows rows, const T* out) const {
    constexpr int lanes = bytes / int(sizeof(T));
    // Inner segments are reached by as many pixels as there can be, and end so early that a vector more
    // can be read.
    const std::int64_t vectors = (segment_ + lanes - 1) / lanes;
    const std::int64_t last = (a_.out_width + a_.padding_width) * a_.out_channels - vectors * lanes;
    std::int64_t begin = inner_begin_, end = last < 0 ? 0 : last / segment_ + 1;
    if (end > a_.width) end = a_.width;
    if (begin > end) begin = end;
    for (std::int64_t j = 0; j < begin; ++j) add_edge(rows, out, j);
    if (rows.count == 2 && whole_ == 2 && !rest_)
      add_inner<bytes, 2, 2>(rows, out, begin, end);
    else if (rows.count == 1 && whole_ == 2 && !rest_)
      add_inner<bytes, 1, 2>(rows, out, begin, end);
    else
      add_inner<bytes, 0, 0>(rows, out, begin, end);
    for (std::int64_t j = end; j * a_.stride_width < a_.out_width + a_.padding_width; ++j) add_edge(rows, out, j);
  }

  // Numbers of rows and of whole segments that are not 0 are known when this is compiled.
  template <int bytes, int known_rows, int known_whole>
  void add_inner(const Rows rows, const T* out, std::int64_t begin, std::int64_t end) const {
    constexpr int lanes = bytes / int(sizeof(T));
    typedef T V __attribute__((vector_size(bytes)));
    typedef typename S::Int I __attribute__((vector_size(bytes)));
    auto load = [](const T* p) __attribute__((always_inline)) {
      V v;
      __builtin_memcpy(&v, p, sizeof v);
      return v;
    };
    I lane{};
    for (int l = 0; l < lanes; ++l) lane[l] = l;
    const std::int64_t count = known_rows ? known_rows : rows.count, whole = known_whole ? known_whole : whole_;
    const std::int64_t rest = known_whole ? 0 : rest_, segment = segment_, columns = columns_;
    std::int64_t at = begin * segment - a_.padding_width * a_.out_channels;
    const T* taps = rows.first + begin * columns;
    for (std::int64_t j = begin; j < end; ++j, at += segment, taps += columns) {
      const T* const from = out ? out + at : pattern_;
      // A vector may reach into the next segment, which is written after it.
      for (std::int64_t v = 0; v < segment; v += lanes) {
        V sum = load(from + v);
        const T* row = taps + v;
        for (std::int64_t r = 0; r < count; ++r, row += rows.step) {
          const T* tap = row;
          for (std::int64_t i = 0; i < whole; ++i, tap += segment - columns) sum += load(tap);
          if (rest > v) sum += (V)((lane < (typename S::Int)(rest - v)) & (I)load(tap));
        }
        __builtin_memcpy(line_ + at + v, &sum, sizeof sum);
      }
    }
  }

  // A segment that lies in the row in part, or is not reached by all pixels.
  void add_edge(const Rows rows, const T* out, std::int64_t j) const {
    const std::int64_t channels = a_.out_channels, stride = a_.stride_width, start = j * stride - a_.padding_width;
    const std::int64_t first = j < a_.width ? 0 : j - a_.width + 1;  // pixel j - first is in the image
    for (std::int64_t k = start < 0 ? -start : 0; k < stride && start + k < a_.out_width; ++k) {
      const std::int64_t at = (start + k) * channels;
      const T* const from = out ? out + at : pattern_;
      const T* const tap = rows.first + (j - first) * columns_ + (k + first * stride) * channels;
      auto sum = [&](auto value, auto&& load) __attribute__((always_inline)) {
        const T* row = tap;
        for (std::int64_t r = 0; r < rows.count; ++r, row += rows.step) {
          const T* p = row;
          for (std::int64_t i = first; i <= j && k + i * stride < a_.kernel_width; ++i, p += segment_ - columns_)
            value += load(p);
        }
        return value;
      };
      T* const to = line_ + at;
      std::int64_t c = 0;
      for (; c + S::lanes <= channels; c += S::lanes)
        S::store(to + c, sum(S::load(from + c), [&](const T* p) { return S::load(p + c); }));
      for (; c < channels; ++c) to[c] = sum(from[c], [&](const T* p) { return p[c]; });
    }
  }

  // line_, or its positive part, to `out`.
  void finish(T* out, std::int64_t size, bool relu) const {
    if (!relu) {
      __builtin_memcpy(out, line_, std::size_t(size) * sizeof(T));
      return;
    }
    const std::int64_t whole = size / S::lanes * S::lanes;
    const typename S::V zero{};  // the first operand: a NaN passes
    for (std::int64_t i = 0; i < whole; i += S::lanes) S::store(out + i, S::max(zero, S::load(line_ + i)));
    for (std::int64_t i = whole; i < size; ++i) out[i] = T(0) > line_[i] ? T(0) : line_[i];
  }

  const ConvTranspose& a_;
  std::int64_t columns_, segment_, whole_, rest_, inner_begin_;  // the kernel's segments, and numbers beyond
  T *line_, *pattern_;
};

template <class T>
void run(const ConvTranspose& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* panels = static_cast<const T*>(a.panels);
  T* out = static_cast<T*>(a.out);
  const std::int64_t pixels = a.height * a.width, out_size = a.out_height * a.out_width * a.out_channels;
  const Portion<T> portion(a);
  const std::int64_t columns = portion.columns;
  const double bytes = product_bytes<T>(a.batch * pixels, a.in_channels, columns);
  parallel_for(a.batch, bytes, a.threads, [&](std::int64_t begin, std::int64_t end) {
    const Scratch taps_memory(portion.bytes(a));
    const Scratch sums_memory((TapSums<T>::line_size(a) + TapSums<T>::pattern_size(a)) * std::int64_t(sizeof(T)));
    T *const taps = static_cast<T*>(taps_memory.get()), *const line = static_cast<T*>(sums_memory.get());
    const TapSums<T> sums(a, columns, line, line + TapSums<T>::line_size(a));
    for (std::int64_t image = begin; image < end; image += portion.images) {
      const std::int64_t images = end - image < portion.images ? end - image : portion.images;
      for (std::int64_t first = 0; first < a.height; first += portion.rows) {
        const std::int64_t last = first + portion.rows < a.height ? first + portion.rows : a.height;
        const std::int64_t count = (last - first) * a.width;
        const T* const from = x + (image * pixels + first * a.width) * a.in_channels;
        const std::int64_t from_image = pixels * a.in_channels, to_image = count * columns;
        // Samples of an image are zero in the same channels of a pixel, its neighbours in others.
        if (images >= Panel<T>::listed_rows)
          multiply<T>({{count, images}, {from, from_image, a.in_channels}, a.in_channels, panels, columns, false,
                       {taps, to_image, columns}}, true);
        else
          multiply<T>({{images, count}, {from, a.in_channels, from_image}, a.in_channels, panels, columns, false,
                       {taps, columns, to_image}}, true);
        for (std::int64_t i = 0; i < images; ++i)
          sums.add(taps + i * to_image, first, last, out + (image + i) * out_size);
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
