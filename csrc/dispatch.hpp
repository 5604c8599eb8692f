// Run-time choice of the instruction set.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace lipvae {

// The table in use: the widest that the processor and the operating system support, unless
// select_kernels chose another.
const KernelTable& kernels();

// Tables usable on this machine, narrowest first.
const std::vector<const KernelTable*>& available_kernels();

// Returns false, and changes nothing, if no usable table has this name.
bool select_kernels(const char* isa);

}  // namespace lipvae
