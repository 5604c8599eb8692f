// Python bindings. Tensors arrive as addresses (tensor.data_ptr()), so the extension is built without
// torch and works with any version of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "networks.hpp"
#include "parallel.hpp"

namespace py = pybind11;

namespace {

using lipvae::DType;
using lipvae::Family;
using Address = std::uintptr_t;

std::string given(const char* name, const std::string& rule, long long value) {
  return std::string(name) + " must be " + rule + ", got " + std::to_string(value);
}

DType dtype_of(int code) {
  if (code != 0 && code != 1) throw py::value_error(given("dtype", "0 (float32) or 1 (float64)", code));
  return static_cast<DType>(code);
}

// Checks sizes and returns how many numbers they span; refuses a product that overflows.
std::int64_t span(std::initializer_list<std::pair<const char*, std::int64_t>> sizes) {
  std::int64_t total = 1;
  for (const auto& [name, size] : sizes)
    if (size < 0) throw py::value_error(given(name, "at least 0", size));
  for (const auto& [name, size] : sizes)
    if (__builtin_mul_overflow(total, size, &total) || total > (std::int64_t{1} << 59))
      throw py::value_error(std::string("the buffer is too large: ") + name + " = " + std::to_string(size));
  return total;
}

void check_threads(int threads) {
  if (threads < 1) throw py::value_error(given("threads", "at least 1", threads));
}

void check_radius(double radius) {
  if (!(radius > 0.0)) throw py::value_error("radius must be positive, got " + std::to_string(radius));
}

void check_address(const char* name, Address address, std::int64_t span) {
  if (address == 0 && span > 0) throw py::value_error(std::string(name) + " must be an address, got 0");
}

void check_group_size(int group_size, std::int64_t n) {
  if (group_size != 2 && group_size != 4 && group_size != 8)
    throw py::value_error(given("group_size", "2, 4 or 8", group_size));
  if (n % group_size != 0)
    throw py::value_error(given("n", "a multiple of group_size = " + std::to_string(group_size), n));
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void run_l1_ball(Address weight, std::int64_t rows, std::int64_t cols, double radius, Address warm,
                 Address out, bool wants_out, Address threshold, int dtype, int threads) {
  const std::int64_t size = span({{"rows", rows}, {"cols", cols}});
  check_radius(radius);
  check_threads(threads);
  check_address("weight", weight, size);
  check_address("threshold", threshold, rows);
  if (wants_out) check_address("out", out, size);
  const lipvae::L1Ball arguments{pointer<const void>(weight), rows, cols, radius,
                                 pointer<const double>(warm), pointer<void>(out),
                                 pointer<double>(threshold), dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().l1_ball(arguments);
}

void l1_ball_threshold(Address weight, std::int64_t rows, std::int64_t cols, double radius, Address warm,
                       Address threshold, int dtype, int threads) {
  run_l1_ball(weight, rows, cols, radius, warm, 0, false, threshold, dtype, threads);
}

void l1_ball_forward(Address weight, std::int64_t rows, std::int64_t cols, double radius, Address warm,
                     Address out, Address threshold, int dtype, int threads) {
  run_l1_ball(weight, rows, cols, radius, warm, out, true, threshold, dtype, threads);
}

void l1_ball_backward(Address grad, Address weight, Address threshold, Address grad_weight,
                      std::int64_t rows, std::int64_t cols, int dtype, int threads) {
  const std::int64_t size = span({{"rows", rows}, {"cols", cols}});
  check_threads(threads);
  check_address("grad", grad, size);
  check_address("weight", weight, size);
  check_address("threshold", threshold, rows);
  check_address("grad_weight", grad_weight, size);
  const lipvae::L1BallBackward arguments{pointer<const void>(grad), pointer<const void>(weight),
                                         pointer<const double>(threshold), pointer<void>(grad_weight),
                                         rows, cols, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().l1_ball_backward(arguments);
}

void group_sort_forward(Address x, Address y, Address code, std::int64_t outer, std::int64_t n,
                        std::int64_t inner, int group_size, int dtype, int threads) {
  const std::int64_t size = span({{"outer", outer}, {"n", n}, {"inner", inner}});
  check_group_size(group_size, n);
  check_threads(threads);
  check_address("x", x, size);
  check_address("y", y, size);
  const lipvae::GroupSort arguments{pointer<const void>(x), pointer<void>(y), pointer<std::uint8_t>(code),
                                    outer, n, inner, group_size, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().group_sort(arguments);
}

void group_sort_backward(Address grad_y, Address code, Address grad_x, std::int64_t outer,
                         std::int64_t n, std::int64_t inner, int group_size, int dtype, int threads) {
  const std::int64_t size = span({{"outer", outer}, {"n", n}, {"inner", inner}});
  check_group_size(group_size, n);
  check_threads(threads);
  check_address("grad_y", grad_y, size);
  check_address("code", code, size);
  check_address("grad_x", grad_x, size);
  const lipvae::GroupSortBackward arguments{pointer<const void>(grad_y), pointer<const std::uint8_t>(code),
                                            pointer<void>(grad_x), outer, n, inner, group_size,
                                            dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().group_sort_backward(arguments);
}

Family family_of(int code) {
  if (code < 0 || code > 4) throw py::value_error(given("family", "0 to 4", code));
  return static_cast<Family>(code);
}

void importance_forward(Address parameters, Address target, Address out, std::int64_t samples,
                        std::int64_t batch, std::int64_t dim, int family, int dtype, int threads) {
  const Family kind = family_of(family);
  const std::int64_t rows = span({{"K", samples}, {"B", batch}});
  const std::int64_t size = span({{"K", samples}, {"B", batch}, {"D", dim}, {"P", lipvae::planes_of(kind)}});
  check_threads(threads);
  check_address("parameters", parameters, size);
  check_address("target", target, size);
  check_address("out", out, rows);
  const lipvae::Importance arguments{pointer<const void>(parameters), pointer<const void>(target),
                                     pointer<void>(out), samples, batch, dim, kind, dtype_of(dtype),
                                     threads};
  py::gil_scoped_release release;
  lipvae::kernels().importance(arguments);
}

void importance_backward(Address grad_out, Address parameters, Address target, Address grad_parameters,
                         std::int64_t samples, std::int64_t batch, std::int64_t dim, int family,
                         int dtype, int threads) {
  const Family kind = family_of(family);
  const std::int64_t size = span({{"K", samples}, {"B", batch}, {"D", dim}, {"P", lipvae::planes_of(kind)}});
  check_threads(threads);
  check_address("grad_out", grad_out, size);
  check_address("parameters", parameters, size);
  check_address("target", target, size);
  check_address("grad_parameters", grad_parameters, size);
  const lipvae::ImportanceBackward arguments{
      pointer<const void>(grad_out), pointer<const void>(parameters), pointer<const void>(target),
      pointer<void>(grad_parameters), samples, batch, dim, kind, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().importance_backward(arguments);
}

// Panels are of one instruction set: another one's would be read as other weights.
void check_width(std::int64_t width, DType dtype) {
  const std::int64_t own = lipvae::kernels().panel_width(dtype);
  if (width != own) throw py::value_error(given("width", "panel_width(dtype) = " + std::to_string(own), width));
}

std::int64_t panels_span(std::int64_t planes, std::int64_t columns, std::int64_t inner, std::int64_t width) {
  span({{"planes", planes}, {"D", columns}, {"H", inner}});
  return span({{"planes", planes}, {"D", (columns + width - 1) / width * width}, {"H", 1 + inner}});
}

std::int64_t panel_width(int dtype) { return lipvae::kernels().panel_width(dtype_of(dtype)); }

void linear_pack(Address weight, Address bias, Address panels, std::int64_t planes, std::int64_t columns,
                 std::int64_t plane_stride, std::int64_t inner, std::int64_t width, int dtype, int threads) {
  check_width(width, dtype_of(dtype));
  const std::int64_t size = panels_span(planes, columns, inner, width);
  if (plane_stride < columns) throw py::value_error(given("plane_stride", "at least D", plane_stride));
  check_threads(threads);
  check_address("weight", weight, planes * columns * inner);
  check_address("panels", panels, size);
  const lipvae::LinearPack arguments{pointer<const void>(weight), pointer<const void>(bias),
                                     pointer<void>(panels), planes, columns, plane_stride, inner,
                                     dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().linear_pack(arguments);
}

void check_optional_group_size(int group_size, std::int64_t n) {
  if (group_size != 0) check_group_size(group_size, n);
}

void linear_forward(Address x, Address panels, Address out, std::int64_t rows, std::int64_t columns,
                    std::int64_t inner, std::int64_t width, std::int64_t together, bool relu, int group_size,
                    int dtype, int threads) {
  check_width(width, dtype_of(dtype));
  const std::int64_t weights = panels_span(1, columns, inner, width);
  check_threads(threads);
  if (together < 1 || rows % together) throw py::value_error(given("together", "a divisor of rows", together));
  check_address("x", x, span({{"rows", rows}, {"H", inner}}));
  check_address("panels", panels, weights);
  check_address("out", out, span({{"rows", rows}, {"D", columns}}));
  check_optional_group_size(group_size, columns);
  const lipvae::Linear arguments{pointer<const void>(x), pointer<const void>(panels), pointer<void>(out),
                                 rows, columns, inner, relu, dtype_of(dtype), threads, group_size,
                                 nullptr, 0, together};
  py::gil_scoped_release release;
  lipvae::kernels().linear(arguments);
}

void conv_transpose_forward(Address x, Address panels, Address bias, Address out, std::int64_t batch,
                            std::array<std::int64_t, 3> in, std::array<std::int64_t, 3> to,
                            std::array<std::int64_t, 2> kernel, std::array<std::int64_t, 2> stride,
                            std::array<std::int64_t, 2> padding, std::int64_t width, bool relu, int dtype,
                            int threads) {
  check_width(width, dtype_of(dtype));
  const std::int64_t taps =
      span({{"kernel height", kernel[0]}, {"kernel width", kernel[1]}, {"to channels", to[2]}});
  const std::int64_t columns = (taps + width - 1) / width * width;
  if (columns * (dtype == 0 ? 4 : 8) > lipvae::taps_bytes)
    throw py::value_error(given("taps", "less: those of a pixel have to fit into 128 kB", taps));
  if (in[0] < 1 || in[1] < 1) throw py::value_error("input must have at least one pixel");
  if (stride[0] < 1 || stride[1] < 1) throw py::value_error("stride must be at least 1");
  if (padding[0] < 0 || padding[1] < 0) throw py::value_error("padding must not be negative");
  const std::int64_t weights = panels_span(1, taps, in[2], width);
  check_threads(threads);
  check_address("x", x,
                span({{"batch", batch}, {"input height", in[0]}, {"input width", in[1]}, {"input channels", in[2]}}));
  check_address("panels", panels, weights);
  check_address("out", out,
                span({{"batch", batch}, {"to height", to[0]}, {"to width", to[1]}, {"to channels", to[2]}}));
  const lipvae::ConvTranspose arguments{
      pointer<const void>(x), pointer<const void>(panels), pointer<const void>(bias), pointer<void>(out),
      batch, in[0], in[1], in[2], to[0], to[1], to[2], kernel[0], kernel[1], stride[0], stride[1],
      padding[0], padding[1], relu, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().conv_transpose(arguments);
}

// What lipschitz_linear_forward leaves for lipschitz_linear_backward.
class Record {
 public:
  Record(std::int64_t rows, std::int64_t columns, std::int64_t inner, int group_size, DType dtype)
      : size_{rows, columns, inner, group_size, std::int64_t(dtype)},
        threshold_(new double[std::size_t(columns)]),
        code_(new std::uint8_t[std::size_t(code_bytes(rows, columns, group_size))]),
        entries_(operator new(std::size_t(lipvae::entries_bytes(columns, inner, dtype)), alignment)) {}
  double* threshold() const { return threshold_.get(); }
  std::uint8_t* code() const { return size_[3] ? code_.get() : nullptr; }
  void* entries() const { return entries_.get(); }
  void drop_entries() { entries_.reset(); }
  void check(std::int64_t rows, std::int64_t columns, std::int64_t inner, int group_size, DType dtype) const {
    if (size_ != std::array<std::int64_t, 5>{rows, columns, inner, group_size, std::int64_t(dtype)})
      throw py::value_error("record must be of a pass of these sizes");
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(void* memory) const { operator delete(memory, alignment); }
  };
  static std::int64_t code_bytes(std::int64_t rows, std::int64_t columns, int group_size) {
    return group_size ? std::int64_t(lipvae::comparators(group_size)) * rows * ((columns / group_size + 7) / 8) : 0;
  }
  std::array<std::int64_t, 5> size_;
  std::unique_ptr<double[]> threshold_;
  std::unique_ptr<std::uint8_t[]> code_;
  std::unique_ptr<void, Free> entries_;
};

std::unique_ptr<Record> lipschitz_linear_forward(
    Address x, Address weight, Address bias, double radius, Address warm, Address y, Address threshold,
    Address panels, Address code, bool recording, std::int64_t rows, std::int64_t columns, std::int64_t inner,
    std::int64_t width, int group_size, int dtype, int threads) {
  if (panels) check_width(width, dtype_of(dtype));
  const std::int64_t size = span({{"D", columns}, {"H", inner}});
  panels_span(1, columns, inner, lipvae::kernels().panel_width(dtype_of(dtype)));
  check_radius(radius);
  check_threads(threads);
  check_optional_group_size(group_size, columns);
  check_address("x", x, span({{"rows", rows}, {"H", inner}}));
  check_address("weight", weight, size);
  check_address("y", y, span({{"rows", rows}, {"D", columns}}));
  check_address("threshold", threshold, columns);
  std::unique_ptr<Record> record;
  if (recording) record = std::make_unique<Record>(rows, columns, inner, group_size, dtype_of(dtype));
  bool listed = false;
  const lipvae::LipschitzLinear arguments{
      pointer<const void>(x), pointer<const void>(weight), pointer<const void>(bias), radius,
      pointer<const double>(warm), pointer<void>(y),
      // Where warm is, another thread may write while this one reads.
      record ? record->threshold() : pointer<double>(threshold), pointer<void>(panels),
      group_size, record ? record->code() : pointer<std::uint8_t>(code), rows, columns, inner,
      dtype_of(dtype), threads, record ? record->entries() : nullptr, &listed};
  {
    py::gil_scoped_release release;
    lipvae::kernels().lipschitz_linear(arguments);
  }
  if (record) std::copy_n(record->threshold(), columns, pointer<double>(threshold));
  if (record && !listed) record->drop_entries();
  return record;
}

void lipschitz_linear_backward(Address grad, const Record* record, Address code, Address x, Address weight,
                               Address threshold, Address grad_x, Address grad_weight, Address grad_bias,
                               std::int64_t rows, std::int64_t columns, std::int64_t inner, int group_size,
                               int dtype, int threads) {
  const std::int64_t size = span({{"D", columns}, {"H", inner}});
  panels_span(1, columns, inner, lipvae::kernels().panel_width(dtype_of(dtype)));
  check_threads(threads);
  check_optional_group_size(group_size, columns);
  check_address("grad", grad, span({{"rows", rows}, {"D", columns}}));
  check_address("x", x, span({{"rows", rows}, {"H", inner}}));
  check_address("weight", weight, size);
  if (record) record->check(rows, columns, inner, group_size, dtype_of(dtype));
  if (!record) check_address("threshold", threshold, columns);
  if (!record && group_size) check_address("code", code, rows * columns);
  const lipvae::LipschitzLinearBackward arguments{
      pointer<const void>(grad),
      record ? record->code() : pointer<const std::uint8_t>(group_size ? code : 0),
      group_size,
      pointer<const void>(x),
      pointer<const void>(weight),
      record ? record->entries() : nullptr,
      record ? record->threshold() : pointer<const double>(threshold),
      pointer<void>(grad_x),
      pointer<void>(grad_weight),
      pointer<void>(grad_bias),
      rows,
      columns,
      inner,
      dtype_of(dtype),
      threads};
  py::gil_scoped_release release;
  lipvae::kernels().lipschitz_linear_backward(arguments);
}

void importance_linear_forward(Address hidden, Address panels, Address target, Address total,
                               std::int64_t samples, std::int64_t batch, std::int64_t dim,
                               std::int64_t inner, std::int64_t width, bool images_first, int family,
                               int dtype, int threads) {
  const Family kind = family_of(family);
  check_width(width, dtype_of(dtype));
  const std::int64_t rows = span({{"K", samples}, {"B", batch}});
  const std::int64_t weights = panels_span(lipvae::planes_of(kind), dim, inner, width);
  const std::int64_t columns = lipvae::planes_of(kind) * ((dim + width - 1) / width * width);
  if (columns * (dtype == 0 ? 4 : 8) > lipvae::logits_bytes)
    throw py::value_error(given("D", "less: a row of parameters has to fit into 256 kB", dim));
  check_threads(threads);
  check_address("hidden", hidden, span({{"K", rows}, {"H", inner}}));
  check_address("panels", panels, weights);
  check_address("target", target, span({{"B", batch}, {"D", dim}}));
  check_address("total", total, rows);
  const lipvae::ImportanceLinear arguments{
      pointer<const void>(hidden), pointer<const void>(panels), pointer<const void>(target),
      pointer<double>(total), rows, batch, dim, inner, images_first ? samples : 1, kind, dtype_of(dtype),
      threads};
  py::gil_scoped_release release;
  lipvae::kernels().importance_linear(arguments);
}

void normal_samples(Address loc, Address log_variance, Address noise, Address z, Address log_ratio,
                    std::int64_t batch, std::int64_t samples, std::int64_t dim, int dtype, int threads) {
  const std::int64_t size = span({{"B", batch}, {"K", samples}, {"m", dim}});
  check_threads(threads);
  check_address("loc", loc, span({{"B", batch}, {"m", dim}}));
  check_address("log_variance", log_variance, span({{"B", batch}, {"m", dim}}));
  check_address("noise", noise, span({{"K", samples}, {"m", dim}}));
  check_address("z", z, size);
  check_address("log_ratio", log_ratio, span({{"B", batch}, {"K", samples}}));
  const lipvae::NormalSamples arguments{
      pointer<const double>(loc), pointer<const double>(log_variance), pointer<const double>(noise),
      pointer<void>(z), pointer<double>(log_ratio), batch, samples, dim, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().normal_samples(arguments);
}

void importance_statistics(Address log_likelihood, Address log_ratio, Address state, Address statistics,
                           std::int64_t batch, std::int64_t samples, std::int64_t before, int dtype,
                           int threads) {
  const std::int64_t size = span({{"B", batch}, {"K", samples}});
  if (before < 0) throw py::value_error(given("before", "at least 0", before));
  check_threads(threads);
  check_address("log_likelihood", log_likelihood, size);
  check_address("log_ratio", log_ratio, size);
  check_address("state", state, batch);
  check_address("statistics", statistics, batch);
  const lipvae::ImportanceStatistics arguments{
      pointer<const void>(log_likelihood), pointer<const double>(log_ratio), pointer<double>(state),
      pointer<double>(statistics), batch, samples, before, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().importance_statistics(arguments);
}

void vmf_sample(Address loc, Address concentration, Address out, Address t, std::int64_t samples,
                std::int64_t rows, std::int64_t dim, std::uint64_t seed, std::uint64_t start, bool shared,
                int dtype, int threads) {
  const std::int64_t size = span({{"samples", samples}, {"rows", rows}, {"dim", dim}});
  if (dim < 2 || dim > lipvae::vmf_max_dim)
    throw py::value_error(given("dim", "from 2 to " + std::to_string(lipvae::vmf_max_dim), dim));
  check_threads(threads);
  check_address("loc", loc, size);
  check_address("concentration", concentration, size);
  check_address("out", out, size);
  check_address("t", t, size);
  const lipvae::Vmf arguments{pointer<const void>(loc), pointer<const void>(concentration),
                              pointer<void>(out), pointer<double>(t), samples, rows, dim, seed, start,
                              shared, dtype_of(dtype), threads};
  py::gil_scoped_release release;
  lipvae::kernels().vmf(arguments);
}

void vmf_angle(Address t, Address concentration, Address complement, Address node, Address weight,
               Address out, std::int64_t samples, std::int64_t rows, std::int64_t dim, int nodes,
               int threads) {
  const std::int64_t size = span({{"samples", samples}, {"rows", rows}});
  if (dim < 2) throw py::value_error(given("dim", "at least 2", dim));
  if (nodes < 1) throw py::value_error(given("nodes", "at least 1", nodes));
  check_threads(threads);
  check_address("t", t, size);
  check_address("concentration", concentration, size);
  check_address("complement", complement, size);
  check_address("node", node, nodes);
  check_address("weight", weight, nodes);
  check_address("out", out, size);
  const lipvae::VmfAngle arguments{pointer<const double>(t), pointer<const double>(concentration),
                                   pointer<const double>(complement), pointer<const double>(node),
                                   pointer<const double>(weight), pointer<double>(out),
                                   samples, rows, dim, nodes, threads};
  py::gil_scoped_release release;
  lipvae::kernels().vmf_angle(arguments);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const lipvae::KernelTable* table : lipvae::available_kernels()) names.emplace_back(table->isa);
  return names;
}

void set_isa(const std::string& name) {
  if (lipvae::select_kernels(name.c_str())) return;
  std::string usable;
  for (const std::string& other : available_isas()) usable += (usable.empty() ? "" : ", ") + other;
  throw py::value_error("name must be one of " + usable + " on this machine, got " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace py::literals;
  m.doc() =
      "CPU kernels of lipvae on raw buffers.\n\n"
      "Every tensor is the address of a dense, row-major buffer. dtype is 0 for float32 and 1 for\n"
      "float64. threads is the most threads a call may use; a small problem runs on one. Results do\n"
      "not depend on it. Bad sizes, codes and null addresses raise ValueError. The GIL is released.";
  m.attr("__version__") = LIPVAE_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("threading") = lipvae::threading_layer();

  m.def("l1_ball_threshold", &l1_ball_threshold,
        "Writes the threshold tau [rows] (float64) of the projection of each row of weight [rows, cols]\n"
        "onto the L1 ball of the radius; 0 for a row inside. warm is 0 or the address of a guess of\n"
        "tau [rows] (float64), which changes the time and not the result. A row with a NaN, or whose\n"
        "L1 norm is not finite, has threshold NaN.",
        "weight"_a, "rows"_a, "cols"_a, "radius"_a, "warm"_a, "threshold"_a, "dtype"_a, "threads"_a);
  m.def("l1_ball_forward", &l1_ball_forward,
        "Writes out [rows, cols] = sign(w) max(|w| - tau, 0) and the threshold tau [rows] (float64).\n"
        "out may be weight. A row whose threshold is NaN is written as NaN.",
        "weight"_a, "rows"_a, "cols"_a, "radius"_a, "warm"_a, "out"_a, "threshold"_a, "dtype"_a, "threads"_a);
  m.def("l1_ball_backward", &l1_ball_backward,
        "Writes grad_weight [rows, cols]: on A = {|w| > tau}, g - sign(w) mean_A(sign(w) g); 0 off A; g\n"
        "itself in a row with tau == 0. grad_weight may be grad.",
        "grad"_a, "weight"_a, "threshold"_a, "grad_weight"_a, "rows"_a, "cols"_a, "dtype"_a, "threads"_a);
  m.def("group_sort_forward", &group_sort_forward,
        "Sorts groups of group_size (2, 4 or 8) neighbours along n of x [outer, n, inner], ascending,\n"
        "into y, which may be x. code is 0, or the address of uint8 [comparators, outer,\n"
        "ceil(n / group_size * inner / 8)], which receives one bit for each comparator and group.",
        "x"_a, "y"_a, "code"_a, "outer"_a, "n"_a, "inner"_a, "group_size"_a, "dtype"_a, "threads"_a);
  m.def("group_sort_backward", &group_sort_backward,
        "Sends grad_y [outer, n, inner] back through the swaps in code to grad_x, which may be grad_y.",
        "grad_y"_a, "code"_a, "grad_x"_a, "outer"_a, "n"_a, "inner"_a, "group_size"_a, "dtype"_a, "threads"_a);

  m.def("importance_forward", &importance_forward,
        "Writes out [K, B] = sum_d log p(target[b, d] | parameters[k, b, :, d]) for parameters\n"
        "[K, B, P, D] and target [B, D]. family: 0 bernoulli (P = 1, logits), 1 continuous_bernoulli\n"
        "(P = 1, logits), 2 gaussian (P = 2: mean, log scale), 3 discretized_logistic (P = 2: mean, log\n"
        "scale; 256 bins on [0, 1]), 4 categorical256 (P = 256 logits; class round(255 target)). An\n"
        "entry of out depends on its own parameters and target only.",
        "parameters"_a, "target"_a, "out"_a, "K"_a, "B"_a, "D"_a, "family"_a, "dtype"_a, "threads"_a);
  m.def("importance_backward", &importance_backward,
        "Writes grad_parameters [K, B, P, D] from grad_out [K, B].",
        "grad_out"_a, "parameters"_a, "target"_a, "grad_parameters"_a, "K"_a, "B"_a, "D"_a, "family"_a,
        "dtype"_a, "threads"_a);

  m.def("panel_width", &panel_width,
        "Columns of a panel of linear_pack under the instruction set in use.", "dtype"_a);
  m.def("linear_pack", &linear_pack,
        "Writes panels [planes, ceil(D / width), 1 + H, width] from weight [planes, D, H] and bias\n"
        "[planes, D] (or 0), whose planes lie plane_stride columns apart. width is panel_width(dtype):\n"
        "panels of another instruction set are refused.",
        "weight"_a, "bias"_a, "panels"_a, "planes"_a, "D"_a, "plane_stride"_a, "H"_a, "width"_a, "dtype"_a,
        "threads"_a);
  m.def("linear_forward", &linear_forward,
        "Writes out [rows, D] = x W^T + bias for x [rows, H] and the panels of one plane, or its positive\n"
        "part if relu, sorted in groups of group_size (2, 4 or 8) neighbours, or not if it is 0. A row of out\n"
        "depends on its row of x only. What is zero in all of a few rows takes less time: rows come in groups\n"
        "of `together` that are likely so.",
        "x"_a, "panels"_a, "out"_a, "rows"_a, "D"_a, "H"_a, "width"_a, "together"_a, "relu"_a,
        "group_size"_a, "dtype"_a, "threads"_a);
  py::class_<Record>(m, "Record", "What lipschitz_linear_forward leaves for lipschitz_linear_backward.")
      .def_property_readonly("listed", [](const Record& record) { return record.entries() != nullptr; },
                             "Whether P has few entries, which the record lists.");
  m.def("lipschitz_linear_forward", &lipschitz_linear_forward,
        "Writes y [rows, D] = x P^T + bias, sorted as in linear_forward, for x [rows, H], P the projection of\n"
        "weight [D, H] by l1_ball_forward and bias [D] or 0. Writes threshold as that does, given warm, which\n"
        "may be threshold. panels [1, ceil(D / width), 1 + H, width], if it is not 0, receives what linear_pack\n"
        "makes of P, and code, if it is not 0, what group_sort_forward of [rows, D, 1] does. Returns a Record if\n"
        "recording, which holds code and threshold too, and None otherwise. A row of y depends on its row of x\n"
        "only and is that of linear_forward.",
        "x"_a, "weight"_a, "bias"_a, "radius"_a, "warm"_a, "y"_a, "threshold"_a, "panels"_a, "code"_a,
        "recording"_a, "rows"_a, "D"_a, "H"_a, "width"_a, "group_size"_a, "dtype"_a, "threads"_a);
  m.def("lipschitz_linear_backward", &lipschitz_linear_backward,
        "The gradients of lipschitz_linear_forward, given its Record or else, if group_size is not 0, its code,\n"
        "and threshold. From grad [rows, D] it writes grad_x [rows, H], grad_weight [D, H], through the\n"
        "projection, and grad_bias [D]; each may be 0. A row of grad_x depends on its row of grad only.",
        "grad"_a, "record"_a, "code"_a, "x"_a, "weight"_a, "threshold"_a, "grad_x"_a, "grad_weight"_a,
        "grad_bias"_a, "rows"_a, "D"_a, "H"_a, "group_size"_a, "dtype"_a, "threads"_a);
  m.def("conv_transpose_forward", &conv_transpose_forward,
        "Writes out [batch, *to], the transposed convolution of x [batch, *input], both (height, width,\n"
        "channels), or its positive part if relu. panels has a column for each (y, x, channel) of the kernel;\n"
        "bias [channels] may be 0. An image of out depends on its image of x only.",
        "x"_a, "panels"_a, "bias"_a, "out"_a, "batch"_a, "input"_a, "to"_a, "kernel"_a, "stride"_a,
        "padding"_a, "width"_a, "relu"_a, "dtype"_a, "threads"_a);
  m.def("importance_linear_forward", &importance_linear_forward,
        "Adds importance_forward of the parameters hidden W^T + bias to total [K, B] (float64), for hidden\n"
        "[K, B, H], target [B, D] and panels with a plane for each parameter of the family. If images_first,\n"
        "hidden is [B, K, H] and total [B, K], and what is zero in several samples of an image takes less\n"
        "time. An entry of total depends on its own row of hidden and target only.",
        "hidden"_a, "panels"_a, "target"_a, "total"_a, "K"_a, "B"_a, "D"_a, "H"_a, "width"_a,
        "images_first"_a, "family"_a, "dtype"_a, "threads"_a);

  m.def("normal_samples", &normal_samples,
        "Writes z [B, K, m] = loc + exp(log_variance / 2) noise and log_ratio [B, K] = log p(z) - log q(z),\n"
        "p standard normal, for loc and log_variance [B, m] and noise [K, m]. All but z are float64.",
        "loc"_a, "log_variance"_a, "noise"_a, "z"_a, "log_ratio"_a, "B"_a, "K"_a, "m"_a, "dtype"_a,
        "threads"_a);
  m.def("importance_statistics", &importance_statistics,
        "Adds K samples to state [B, importance_state], which holds what is needed of `before` earlier ones,\n"
        "and writes statistics [importance_state, B] of all of them, given log_likelihood [B, K] and log_ratio\n"
        "[B, K] = log p(z) - log q(z): mean and sample standard deviation of log p(x | z), that of log w,\n"
        "logsumexp of log w less log K, mean of log w, mean of -log_ratio, (sum w)^2 / sum w^2. All but\n"
        "log_likelihood are float64. An image's depend on its own samples only.",
        "log_likelihood"_a, "log_ratio"_a, "state"_a, "statistics"_a, "B"_a, "K"_a, "before"_a, "dtype"_a,
        "threads"_a);
  m.attr("importance_state") = lipvae::importance_state;

  m.def("vmf_sample", &vmf_sample,
        "Writes out [samples, rows, dim], samples of the von Mises-Fisher distributions of loc [rows, dim]\n"
        "(used through its direction) and concentration [rows] >= 0, and t [samples, rows] (float64), 1\n"
        "less the inner product with the direction. The random numbers of sample (s, row) depend on seed\n"
        "and on its index alone: start + s * rows + row or, if shared, start + s.",
        "loc"_a, "concentration"_a, "out"_a, "t"_a, "samples"_a, "rows"_a, "dim"_a, "seed"_a, "start"_a,
        "shared"_a, "dtype"_a, "threads"_a);
  m.def("vmf_angle", &vmf_angle,
        "Writes out [samples, rows], the derivative of acos(1 - t) in the concentration at a fixed level\n"
        "of the distribution function. Everything is float64: t [samples, rows], concentration and\n"
        "complement = 1 - A(concentration) [rows], a quadrature rule on [0, 1] as node and weight [nodes].",
        "t"_a, "concentration"_a, "complement"_a, "node"_a, "weight"_a, "out"_a, "samples"_a, "rows"_a,
        "dim"_a, "nodes"_a, "threads"_a);

  m.def("isa", [] { return std::string(lipvae::kernels().isa); },
        "Name of the instruction set in use: baseline, avx2, avx512 or neon.");
  m.def("available_isas", &available_isas, "Instruction sets usable on this machine, narrowest first.");
  m.def("set_isa", &set_isa, "Uses another instruction set for every later call (for tests).", "name"_a);
  m.def("max_threads", &lipvae::max_threads, "Threads that OpenMP would use; 1 in a build without it.");
}
