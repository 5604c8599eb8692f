// The interface between the kernels and whoever calls them: one struct of arguments an op, and one
// table of functions an instruction set. Buffers are dense and row-major.
#pragma once

#include <cstdint>

namespace lipvae {

enum class DType : int { float32 = 0, float64 = 1 };

enum class Family : int {
  bernoulli = 0,
  continuous_bernoulli = 1,
  gaussian = 2,
  discretized_logistic = 3,
  categorical256 = 4,
};

// Parameters of one dimension, each of which has a plane of its own.
constexpr std::int64_t planes_of(Family family) {
  switch (family) {
    case Family::gaussian:
    case Family::discretized_logistic: return 2;
    case Family::categorical256: return 256;
    default: return 1;
  }
}

// Projection of every row of weight [rows, cols] onto the L1 ball of the radius.
struct L1Ball {
  const void* weight;
  std::int64_t rows, cols;
  double radius;
  const double* warm;  // [rows] or null: a guess of threshold; changes the time, not the result
  void* out;           // [rows, cols] or null: thresholds only; may be weight itself
  double* threshold;   // [rows]
  DType dtype;
  int threads;
};

struct L1BallBackward {
  const void* grad;
  const void* weight;
  const double* threshold;
  void* grad_weight;  // may be grad itself
  std::int64_t rows, cols;
  DType dtype;
  int threads;
};

// Ascending sort of each group of group_size neighbours along n, for x viewed as [outer, n, inner].
// code is uint8 [comparators, outer, ceil(n / group_size * inner / 8)]: bit p % 8 of byte p / 8 says
// whether the comparator swapped at p = group * inner + inner_index.
struct GroupSort {
  const void* x;
  void* y;             // may be x itself
  std::uint8_t* code;  // null: do not record
  std::int64_t outer, n, inner;
  int group_size;  // 2, 4 or 8
  DType dtype;
  int threads;
  std::int64_t code_stride = 0;  // bytes from a comparator's code to the next one's; 0: it is dense
};

struct GroupSortBackward {
  const void* grad_y;
  const std::uint8_t* code;
  void* grad_x;  // may be grad_y itself
  std::int64_t outer, n, inner;
  int group_size;
  DType dtype;
  int threads;
};

// out[k, b] = sum_d log p(target[b, d] | parameters[k, b, :, d]).
struct Importance {
  const void* parameters;  // [samples, batch, planes of the family, dim]
  const void* target;      // [batch, dim]
  void* out;               // [samples, batch]
  std::int64_t samples, batch, dim;
  Family family;
  DType dtype;
  int threads;
};

// The weight and bias of a linear layer, rearranged for linear and importance_linear. The columns come
// in planes, each of which starts a panel; in weight and bias they lie plane_stride columns apart.
struct LinearPack {
  const void* weight;  // `inner` numbers a column
  const void* bias;    // one number a column, or null
  void* panels;        // [planes, ceil(columns / panel width), 1 + inner, panel width]
  std::int64_t planes, columns, plane_stride, inner;
  DType dtype;
  int threads;
};

// out = x W^T + bias, its positive part, or its rows sorted in groups. A row of out depends on its row of x
// alone.
struct Linear {
  const void* x;       // [rows, inner]
  const void* panels;  // of linear_pack, one plane
  void* out;           // [rows, columns]
  std::int64_t rows, columns, inner;
  bool relu;
  DType dtype;
  int threads;
  int group_size = 0;            // of group_sort; 0: no sort
  std::uint8_t* code = nullptr;  // null: do not record; [comparators, rows, ceil(columns / group_size / 8)]
  std::int64_t code_stride = 0;  // as in GroupSort
  std::int64_t together = 1;     // neighbours that are likely zero in the same places, a divisor of rows
};

// What the projection leaves of a weight [columns, inner], in memory of entries_bytes: of each row the
// entries that are not zero, by ascending index, or all of them where the row lies inside the ball. Row c has
// the places from extent[2 c] to extent[2 c + 1] of the values, which follow the extents, and of their indices
// (int32), which follow the values.
constexpr std::int64_t entries_places(std::int64_t columns, std::int64_t inner) {
  return columns * (inner / 8 + 1);  // a weight with more entries is treated as dense
}
constexpr std::int64_t entries_bytes(std::int64_t columns, std::int64_t inner, DType dtype) {
  return columns * 16 + entries_places(columns, inner) * (dtype == DType::float32 ? 8 : 12);
}

// y = group_sort(x P(weight)^T + bias), P the projection of l1_ball. Rows of y are those of linear. Throws
// std::bad_alloc.
struct LipschitzLinear {
  const void* x;       // [rows, inner]
  const void* weight;  // [columns, inner]
  const void* bias;    // [columns] or null
  double radius;
  const double* warm;  // [columns] or null, as in L1Ball
  void* y;             // [rows, columns]
  double* threshold;   // [columns]
  void* panels;        // or null: what linear_pack makes of P(weight)
  int group_size;      // 0: no sort
  std::uint8_t* code;  // of group_sort, or null
  std::int64_t rows, columns, inner;
  DType dtype;
  int threads;
  // A P(weight) with few entries is listed and multiplied as a list, unless panels are asked for.
  void* entries;  // or null
  bool* listed;   // or null: whether it was
};

// The gradients of LipschitzLinear; those that are null are not asked for. Throws std::bad_alloc.
struct LipschitzLinearBackward {
  const void* grad;          // [rows, columns]
  const std::uint8_t* code;  // of group_sort, or null: nothing was sorted
  int group_size;
  const void* x;             // [rows, inner]
  const void* weight;        // [columns, inner]
  const void* entries;       // of P(weight), or null if it was not listed
  const double* threshold;   // [columns]
  void* grad_x;              // [rows, inner]
  void* grad_weight;         // [columns, inner]: through the projection
  void* grad_bias;           // [columns]
  std::int64_t rows, columns, inner;
  DType dtype;
  int threads;
};

// What conv_transpose keeps of the taps, or those of one row of pixels if they are more. The taps of one pixel
// have to fit.
constexpr std::int64_t taps_bytes = 128 * 1024;

// out = the transposed convolution of x, plus bias, or its positive part; both lie channels last. An image
// of out depends on its image of x alone.
struct ConvTranspose {
  const void* x;       // [batch, height, width, in_channels]
  const void* panels;  // of linear_pack: a column for each (y, x, channel) of the kernel, without bias
  const void* bias;    // [out_channels] or null
  void* out;           // [batch, out_height, out_width, out_channels]
  std::int64_t batch, height, width, in_channels;
  std::int64_t out_height, out_width, out_channels;
  std::int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  bool relu;
  DType dtype;
  int threads;
};

// A row of logits, or of other parameters, may be as large as this.
constexpr std::int64_t logits_bytes = 256 * 1024;

// total[r] += sum_d log p(target[r % batch, d] | the parameters hidden[r] W^T + bias). An entry of total
// depends on its own row of hidden and target only.
struct ImportanceLinear {
  const void* hidden;  // [rows, inner], row r for image r / together % batch
  const void* panels;  // of linear_pack, one plane of dim columns for each parameter of the family
  const void* target;  // [batch, dim]
  double* total;       // [rows]
  std::int64_t rows, batch, dim, inner, together;
  Family family;
  DType dtype;
  int threads;
};

// Samples z = loc + exp(log_variance / 2) noise of N(loc, exp(log_variance)), and log p(z) - log q(z) of them,
// p standard normal. An image's depend on its own row of loc and log_variance, and on the noise, only.
struct NormalSamples {
  const double* loc;           // [batch, dim]
  const double* log_variance;  // [batch, dim]
  const double* noise;         // [samples, dim], the same for every image
  void* z;                     // [batch, samples, dim], of dtype
  double* log_ratio;           // [batch, samples]
  std::int64_t batch, samples, dim;
  DType dtype;
  int threads;
};

// Numbers an image of the state and of the statistics of importance_statistics.
constexpr int importance_state = 7;

// Statistics over k of log p(x | z_k) and log w_k = log p(x | z_k) + log_ratio_k: mean of log p, its sample
// standard deviation and that of log w, logsumexp of log w less log K, mean of log w, mean of -log_ratio, and
// (sum w)^2 / sum w^2. Those of all samples so far: `state` holds what is needed of the `before` ones.
struct ImportanceStatistics {
  const void* log_likelihood;  // [batch, samples]
  const double* log_ratio;     // [batch, samples]
  double* state;               // [batch, importance_state]
  double* statistics;          // [importance_state, batch]
  std::int64_t batch, samples, before;
  DType dtype;
  int threads;
};

struct ImportanceBackward {
  const void* grad_out;
  const void* parameters;
  const void* target;
  void* grad_parameters;
  std::int64_t samples, batch, dim;
  Family family;
  DType dtype;
  int threads;
};

// Samples of vMF(loc[row], concentration[row]) and t = 1 - <loc, sample>. The random numbers of sample
// (s, row) depend on seed and on its index alone: start + s * rows + row, or start + s if shared.
struct Vmf {
  const void* loc;            // [rows, dim], used through its direction
  const void* concentration;  // [rows]
  void* out;                  // [samples, rows, dim]
  double* t;                  // [samples, rows]
  std::int64_t samples, rows, dim;
  std::uint64_t seed, start;
  bool shared;
  DType dtype;
  int threads;
};

constexpr std::int64_t vmf_max_dim = 8192;

// out = d acos(1 - t) / d concentration at a fixed level of the distribution function.
struct VmfAngle {
  const double* t;              // [samples, rows]
  const double* concentration;  // [rows]
  const double* complement;     // [rows], 1 - A_dim(concentration)
  const double* node;           // [nodes], of a quadrature rule on [0, 1]
  const double* weight;         // [nodes]
  double* out;                  // [samples, rows]
  std::int64_t samples, rows, dim;
  int nodes;
  int threads;
};

struct KernelTable {
  const char* isa;
  void (*l1_ball)(const L1Ball&);
  void (*l1_ball_backward)(const L1BallBackward&);
  void (*group_sort)(const GroupSort&);
  void (*group_sort_backward)(const GroupSortBackward&);
  void (*importance)(const Importance&);
  void (*importance_backward)(const ImportanceBackward&);
  std::int64_t (*panel_width)(DType);  // columns of a panel of linear_pack
  void (*linear_pack)(const LinearPack&);
  void (*linear)(const Linear&);
  void (*conv_transpose)(const ConvTranspose&);
  void (*lipschitz_linear)(const LipschitzLinear&);
  void (*lipschitz_linear_backward)(const LipschitzLinearBackward&);
  void (*importance_linear)(const ImportanceLinear&);
  void (*normal_samples)(const NormalSamples&);
  void (*importance_statistics)(const ImportanceStatistics&);
  void (*vmf)(const Vmf&);
  void (*vmf_angle)(const VmfAngle&);
};

}  // namespace lipvae
