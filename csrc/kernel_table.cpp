// The table of one instruction set's kernels; compiled once for each, like every file of kernels.
#include "isa_kernels.hpp"

#define LIPVAE_STRING_(x) #x
#define LIPVAE_STRING(x) LIPVAE_STRING_(x)

namespace lipvae::LIPVAE_ISA {

extern const KernelTable kernel_table;
const KernelTable kernel_table = {
    LIPVAE_STRING(LIPVAE_ISA),
    l1_ball,
    l1_ball_backward,
    group_sort,
    group_sort_backward,
    importance,
    importance_backward,
    panel_width,
    linear_pack,
    linear,
    conv_transpose,
    lipschitz_linear,
    lipschitz_linear_backward,
    importance_linear,
    normal_samples,
    importance_statistics,
    vmf,
    vmf_angle,
};

}  // namespace lipvae::LIPVAE_ISA
