// GroupSort against std::stable_sort: equal up to the bit, and gradients sent where elements came from.
#include <algorithm>
#include <numeric>

#include "testing.hpp"

namespace lipvae::testing {
namespace {

int comparators(int group_size) { return group_size == 2 ? 1 : group_size == 4 ? 5 : 19; }

template <class T>
void check(const KernelTable& kernels, std::int64_t outer, std::int64_t groups, std::int64_t inner, int g,
           int threads) {
  const std::string name = describe<T>(kernels, "group_sort", outer, groups, inner, g, threads);
  const std::int64_t n = groups * g, row_bytes = (groups * inner + 7) / 8;
  const Buffer<T> x = normals<T>(outer * n * inner), grad = normals<T>(outer * n * inner);
  Buffer<T> y(x.size()), unrecorded(x.size()), in_place = x, sent = grad, truth(x.size()), origin(x.size());
  Buffer<std::uint8_t> code(comparators(g) * outer * row_bytes), again(code.size());
  for (std::int64_t i = 0; i < code.size(); ++i) code[i] = again[i] = 0xff;
  const int other = threads == 1 ? 3 : 1;

  for (std::int64_t o = 0; o < outer; ++o)
    for (std::int64_t p = 0; p < groups * inner; ++p) {
      const std::int64_t base = o * n * inner + p / inner * g * inner + p % inner;
      std::vector<std::int64_t> order(static_cast<std::size_t>(g));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return x[base + a * inner] < x[base + b * inner];
      });
      for (int rank = 0; rank < g; ++rank) {
        const std::int64_t from = base + order[std::size_t(rank)] * inner, to = base + rank * inner;
        truth[to] = x[from];
        origin[from] = grad[to];
      }
    }

  GroupSort call{x.data(), y.data(), code.data(), outer, n, inner, g, dtype<T>, threads};
  kernels.group_sort(call);
  expect(y.same_bits(truth), name + ": values");
  call.y = unrecorded.data();
  call.code = nullptr;
  kernels.group_sort(call);
  expect(unrecorded.same_bits(truth), name + ": values without a code");
  kernels.group_sort({in_place.data(), in_place.data(), again.data(), outer, n, inner, g, dtype<T>, other});
  expect(in_place.same_bits(truth) && again.same_bits(code), name + ": in place, other threads");
  for (std::int64_t row = 0; row < comparators(g) * outer && groups * inner % 8 != 0; ++row)
    expect(code[row * row_bytes + row_bytes - 1] >> (groups * inner % 8) == 0, name + ": padding of the code");

  kernels.group_sort_backward({grad.data(), code.data(), y.data(), outer, n, inner, g, dtype<T>, threads});
  expect(y.same_bits(origin), name + ": gradient");
  kernels.group_sort_backward({sent.data(), code.data(), sent.data(), outer, n, inner, g, dtype<T>, other});
  expect(sent.same_bits(origin), name + ": gradient in place, other threads");
}

// Streams, as large outputs do, to a whole line and past one; the same bits.
template <class T>
void check_streaming(const KernelTable& kernels, std::int64_t rows, std::int64_t groups, int g) {
  const std::string name = describe<T>(kernels, "group_sort, streaming", rows, groups, 1, g, 1);
  const std::int64_t n = groups * g, size = rows * n, code_bytes = comparators(g) * rows * ((groups + 7) / 8);
  const Buffer<T> x = normals<T>(size), grad = normals<T>(size);
  const Lines<T> y(size), sent(size);
  const Lines<std::uint8_t> code(code_bytes);
  Buffer<T> truth(size), origin(size);
  Buffer<std::uint8_t> bits(code_bytes);
  kernels.group_sort({x.data(), truth.data(), bits.data(), rows, n, 1, g, dtype<T>, 1});
  kernels.group_sort_backward({grad.data(), bits.data(), origin.data(), rows, n, 1, g, dtype<T>, 1});
  set_streaming_bytes(0.0);
  for (int threads : {1, 3}) {
    kernels.group_sort({x.data(), y.data(), code.data(), rows, n, 1, g, dtype<T>, threads});
    kernels.group_sort_backward({grad.data(), code.data(), sent.data(), rows, n, 1, g, dtype<T>, threads});
    expect(y.same_bits(truth) && code.same_bits(bits), name + ": values and code");
    expect(sent.same_bits(origin), name + ": gradient");
  }
  set_streaming_bytes(streaming_by_cache);
}

template <class T>
void check_all(const KernelTable& kernels) {
  for (int g : {2, 4, 8}) {
    for (std::int64_t groups : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 64, 511, 513})
      check<T>(kernels, 3, groups, 1, g, 1);
    for (std::int64_t inner : {2, 3, 4, 7, 8, 9, 16, 17, 49, 64, 79, 196, 512, 520, 1027})
      check<T>(kernels, 2, 3, inner, g, 1);
    check<T>(kernels, 64, 2048, 1, g, 4);
    check_streaming<T>(kernels, 8, 4096, g);
    set_streaming_bytes(0.0);  // planes are asked for ahead
    check<T>(kernels, 2, 3, 196, g, 1);
    set_streaming_bytes(streaming_by_cache);
    for (std::int64_t groups : {8, 24, 512, 520, 1000}) check_streaming<T>(kernels, 3, groups, g);
    check<T>(kernels, 16, 8, 1025, g, 4);
    const GroupSort empty{nullptr, nullptr, nullptr, 0, g, 5, g, dtype<T>, 2};
    kernels.group_sort(empty);
  }
}

}  // namespace

void test_group_sort(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
