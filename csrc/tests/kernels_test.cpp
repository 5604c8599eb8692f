// Runs every test on every instruction set of this machine.
#include "testing.hpp"

int main() {
  using namespace lipvae;
  for (const KernelTable* kernels : available_kernels()) {
    // The same data for each: some of the tests ask for numbers without ties.
    testing::generator().seed(testing::seed);
    testing::test_l1_ball(*kernels);
    testing::test_group_sort(*kernels);
    testing::test_importance(*kernels);
    testing::test_linear(*kernels);
    testing::test_conv_transpose(*kernels);
    testing::test_lipschitz_linear(*kernels);
    testing::test_importance_statistics(*kernels);
    testing::test_vmf(*kernels);
    std::printf("%s: %d failures\n", kernels->isa, testing::failures);
  }
  return testing::failures == 0 ? 0 : 1;
}
