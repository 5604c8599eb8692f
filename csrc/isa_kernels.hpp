// The kernels of the instruction set being compiled. Everything that a kernel file defines lives in
// this namespace, and none of it instantiates a standard template: the linker keeps one copy of an
// inline function, and a copy compiled for AVX-512 must never be the one that the baseline calls.
#pragma once

#include "kernels.hpp"

#ifndef LIPVAE_ISA
#error "LIPVAE_ISA names the instruction set, e.g. avx2"
#endif

namespace lipvae::LIPVAE_ISA {

void l1_ball(const L1Ball&);
void l1_ball_backward(const L1BallBackward&);
void group_sort(const GroupSort&);
void group_sort_backward(const GroupSortBackward&);
void importance(const Importance&);
void importance_backward(const ImportanceBackward&);
void categorical256(const Importance&);  // the family of importance that has a file of its own
void categorical256_backward(const ImportanceBackward&);
std::int64_t panel_width(DType);
void linear_pack(const LinearPack&);
void linear(const Linear&);
void conv_transpose(const ConvTranspose&);
void lipschitz_linear(const LipschitzLinear&);
void lipschitz_linear_backward(const LipschitzLinearBackward&);
void importance_linear(const ImportanceLinear&);
void normal_samples(const NormalSamples&);
void importance_statistics(const ImportanceStatistics&);
void vmf(const Vmf&);
void vmf_angle(const VmfAngle&);

}  // namespace lipvae::LIPVAE_ISA
