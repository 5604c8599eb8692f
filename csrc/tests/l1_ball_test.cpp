// The projection against a sort in long double, its derivative against the active set.
#include <algorithm>

#include "testing.hpp"

namespace lipvae::testing {
namespace {

// Duchi et al. 2008: the largest k with u_k > (u_1 + .. + u_k - r) / k, u sorted, gives the threshold.
long double threshold_by_sort(std::vector<long double> magnitude, long double radius) {
  std::sort(magnitude.rbegin(), magnitude.rend());
  long double sum = 0, threshold = 0;
  for (std::size_t k = 0; k < magnitude.size(); ++k) {
    sum += magnitude[k];
    const long double candidate = (sum - radius) / (long double)(k + 1);
    if (magnitude[k] > candidate) threshold = candidate;
  }
  return std::max(threshold, 0.0L);
}

template <class T>
void check(const KernelTable& kernels, std::int64_t rows, std::int64_t cols, double scale, double radius,
           int threads) {
  const std::string name = describe<T>(kernels, "l1_ball", rows, cols, threads);
  const Buffer<T> weight = normals<T>(rows * cols, scale), grad = normals<T>(rows * cols);
  Buffer<T> out(rows * cols), in_place = weight, grad_weight(rows * cols);
  Buffer<double> threshold(rows), warm(rows), again(rows);
  L1Ball call{weight.data(), rows, cols, radius, nullptr, out.data(), threshold.data(), dtype<T>, threads};
  kernels.l1_ball(call);

  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<long double> magnitude;
    long double largest = 0, sum = 0;
    for (std::int64_t j = 0; j < cols; ++j) magnitude.push_back(std::fabs((long double)weight[i * cols + j]));
    for (long double m : magnitude) largest = std::max(largest, m);
    const long double tau = threshold_by_sort(magnitude, radius);
    expect(std::fabs(threshold[i] - tau) <= 4 * epsilon<T> * largest, name + ": threshold");
    for (std::int64_t j = 0; j < cols; ++j) {
      const T w = weight[i * cols + j], p = out[i * cols + j];
      const long double truth = std::max(std::fabs((long double)w) - tau, 0.0L);
      expect(std::fabs(std::fabs((long double)p) - truth) <= 4 * epsilon<T> * largest, name + ": entry");
      expect(p == 0 || (p < 0) == (w < 0), name + ": sign");
      sum += std::fabs((long double)p);
    }
    expect(sum <= (long double)radius * (1 + 2 * epsilon<T>), name + ": row sum");
    warm[i] = double(tau) * (0.5 + uniform());
  }

  L1Ball second = call;
  second.weight = second.out = in_place.data();
  second.warm = warm.data();
  second.threshold = again.data();
  second.threads = threads == 1 ? 3 : 1;
  kernels.l1_ball(second);
  expect(in_place.same_bits(out) && again.same_bits(threshold), name + ": warm, in place, other threads");

  kernels.l1_ball_backward({grad.data(), weight.data(), threshold.data(), grad_weight.data(), rows, cols,
                            dtype<T>, threads});
  for (std::int64_t i = 0; i < rows; ++i) {
    auto active = [&](std::int64_t j) { return std::fabs(double(weight[i * cols + j])) > threshold[i]; };
    long double sum = 0, size = 0, mean = 0;
    const long double bound = threshold[i] > 0 ? 16 * epsilon<T> : 0;
    for (std::int64_t j = 0; j < cols; ++j)
      if (active(j)) {
        sum += weight[i * cols + j] < 0 ? -(long double)grad[i * cols + j] : (long double)grad[i * cols + j];
        size += 1;
      }
    if (threshold[i] > 0) mean = sum / size;
    for (std::int64_t j = 0; j < cols; ++j) {
      const long double g = grad[i * cols + j], s = weight[i * cols + j] < 0 ? -1 : 1;
      const long double truth = threshold[i] > 0 && !active(j) ? 0 : g - s * mean;
      expect(std::fabs(grad_weight[i * cols + j] - truth) <= bound * (1 + std::fabs(mean) + std::fabs(g)),
             name + ": gradient");
    }
  }
}

// Rows are searched several at a time and from what others taught: none of that may show.
template <class T>
void check_mixed(const KernelTable& kernels, std::int64_t cols, double radius) {
  const std::string name = describe<T>(kernels, "l1_ball, mixed rows", cols);
  const auto draws = generator();  // the other tests keep theirs
  generator().discard(static_cast<unsigned long long>(cols));
  const std::int64_t rows = 70;
  Buffer<T> weight = normals<T>(rows * cols);
  Buffer<double> warm(rows);
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (std::int64_t i = 0; i < rows; ++i) {
    T* w = weight.data() + i * cols;
    const int kind = int(uniform() * 9);
    double norm = 0;
    for (std::int64_t j = 0; j < cols; ++j) norm += std::fabs(double(w[j]));
    for (std::int64_t j = 0; j < cols; ++j) {
      if (kind == 1) w[j] = T(double(w[j]) * 0.5 * radius / norm);  // inside
      if (kind == 2) w[j] = T(double(w[j]) * radius / norm * (1 + 1e-4 * (uniform() - 0.5)));
      if (kind == 3) w[j] = T(std::pow(double(w[j]), 7));
      if (kind == 4) w[j] = T(std::round(double(w[j])));  // ties
      if (kind == 5) w[j] = T(double(w[j]) * 1e9);
    }
    if (kind == 6) w[i % cols] = T(1e12);
    if (kind == 7) w[i % cols] = T(i % 2 ? nan : -infinity);
    const double guesses[] = {0.0, 1e-3, 0.5, 2.0, 1e9, 1e299, infinity, nan, -1.0};
    warm[i] = guesses[int(uniform() * 9)];
  }
  Buffer<T> cold(rows * cols), out(rows * cols), alone(rows * cols);
  Buffer<double> threshold(rows), again(rows), apart(rows);
  L1Ball call{weight.data(), rows, cols, radius, nullptr, cold.data(), threshold.data(), dtype<T>, 1};
  kernels.l1_ball(call);
  call.warm = warm.data();
  call.out = out.data();
  call.threshold = again.data();
  kernels.l1_ball(call);
  for (std::int64_t i = 0; i < rows; ++i)
    kernels.l1_ball({weight.data() + i * cols, 1, cols, radius, nullptr, alone.data() + i * cols, &apart[i],
                     dtype<T>, 1});
  expect(alone.same_bits(cold) && apart.same_bits(threshold), name + ": alone");
  expect(out.same_bits(cold) && again.same_bits(threshold), name + ": with guesses");
  generator() = draws;
}

// Sparse rows are searched among their largest elements by lane, i % 16, but for the first: some rows have more there
// than are kept.
template <class T>
void check_sparse(const KernelTable& kernels, std::int64_t cols, double radius) {
  const std::string name = describe<T>(kernels, "l1_ball, sparse rows", cols);
  const auto draws = generator();  // the other tests keep theirs
  const std::int64_t rows = 90;
  Buffer<T> weight = normals<T>(rows * cols, 0.1 * radius / double(cols));
  for (std::int64_t i = 0; i < rows; ++i) {
    T* w = weight.data() + i * cols;
    const int kind = i < 20 ? 0 : int(uniform() * 10);
    const std::int64_t large = kind == 1 ? cols : 3 + std::int64_t(uniform() * 12);
    for (std::int64_t k = 0; k < large; ++k) {
      std::int64_t j = std::int64_t(uniform() * double(cols));
      if (kind == 2) j = (j / 16 * 16 + 5) % cols;  // one lane
      w[j] = T(kind == 3 ? -radius : radius * (1 + uniform()));
    }
    if (kind == 4)
      for (std::int64_t j = 0; j < cols; ++j) w[j] = T(1e-3 * double(w[j]));  // inside, or nearly
    if (kind == 5) w[i % cols] = T(1e12 * radius);
    if (kind == 6) w[i % cols] = T(i % 2 ? std::nan("") : std::numeric_limits<double>::infinity());
    if (kind == 7)
      for (std::int64_t j = 0; j < cols; ++j) w[j] = 0;
  }
  Buffer<T> out(rows * cols), alone(rows * cols);
  Buffer<double> threshold(rows), apart(rows);
  kernels.l1_ball({weight.data(), rows, cols, radius, nullptr, out.data(), threshold.data(), dtype<T>, 1});
  for (std::int64_t i = 0; i < rows; ++i)
    kernels.l1_ball({weight.data() + i * cols, 1, cols, radius, nullptr, alone.data() + i * cols, &apart[i],
                     dtype<T>, 1});
  expect(alone.same_bits(out) && apart.same_bits(threshold), name);
  generator() = draws;
}

// So large that rows are asked for a line at a time.
template <class T>
void check_distant(const KernelTable& kernels) {
  const std::int64_t cols = 4099, rows = (33 << 20) / std::int64_t(sizeof(T)) / cols + 1;
  const std::string name = describe<T>(kernels, "l1_ball, distant rows", rows, cols);
  const Buffer<T> weight = normals<T>(rows * cols);
  Buffer<T> out(rows * cols), alone(cols);
  Buffer<double> threshold(rows), apart(1);
  kernels.l1_ball({weight.data(), rows, cols, 2.0, nullptr, out.data(), threshold.data(), dtype<T>, 2});
  for (std::int64_t i = 0; i < rows; i += 13) {
    kernels.l1_ball(
        {weight.data() + i * cols, 1, cols, 2.0, nullptr, alone.data(), apart.data(), dtype<T>, 1});
    const bool same = std::memcmp(alone.data(), out.data() + i * cols, alone.bytes()) == 0;
    expect(same && apart[0] == threshold[i], name);
  }
}

template <class T>
void check_all(const KernelTable& kernels) {
  check_distant<T>(kernels);
  for (std::int64_t cols : {1, 7, 40, 64, 200, 288, 1000, 3000, 5000})
    for (double radius : {1e-6, 1.0, 20.0}) check_mixed<T>(kernels, cols, radius);
  for (std::int64_t cols : {30, 64, 65, 79, 200, 288, 1003})
    for (double radius : {1e-20, 1.0, 1e20}) check_sparse<T>(kernels, cols, radius);
  for (std::int64_t cols : {1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 129, 288, 784, 1500})
    for (double radius : {1e-3, 1.0, 1e4}) check<T>(kernels, 7, cols, 1.0, radius, 1);
  check<T>(kernels, 4, 50, 1e-30, 1e-29, 1);
  check<T>(kernels, 600, 1001, 1.0, 2.0, 4);
  for (std::int64_t rows : {0, 3}) {  // nothing to read, nothing written but thresholds
    Buffer<double> threshold(3);
    for (int i = 0; i < 3; ++i) threshold[i] = -1;
    const std::int64_t cols = rows == 0 ? 5 : 0;
    kernels.l1_ball({nullptr, rows, cols, 1.0, nullptr, nullptr, threshold.data(), dtype<T>, 1});
    for (int i = 0; i < 3; ++i) expect(threshold[i] == (i < rows ? 0.0 : -1.0), "empty l1_ball");
  }
}

}  // namespace

void test_l1_ball(const KernelTable& kernels) {
  check_all<float>(kernels);
  check_all<double>(kernels);
}

}  // namespace lipvae::testing
