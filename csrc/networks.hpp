// Batcher's odd-even merge sorting networks (Knuth, TAOCP vol. 3, 5.2.2 and 5.3.4). The order of the
// comparators is part of the layout of GroupSort's code and matches lipvae.reference.NETWORKS.
#pragma once

namespace lipvae {

struct Comparator {
  int low, high;  // swaps x[low] and x[high] iff x[low] > x[high]
};

template <int group_size>
struct Network;

template <>
struct Network<2> {
  static constexpr int size = 1;
  static constexpr Comparator comparators[size] = {{0, 1}};
};

template <>
struct Network<4> {
  static constexpr int size = 5;
  static constexpr Comparator comparators[size] = {{0, 1}, {2, 3}, {0, 2}, {1, 3}, {1, 2}};
};

template <>
struct Network<8> {
  static constexpr int size = 19;
  static constexpr Comparator comparators[size] = {
      {0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
      {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
};

constexpr int comparators(int group_size) {
  return group_size == 2 ? Network<2>::size : group_size == 4 ? Network<4>::size : Network<8>::size;
}

}  // namespace lipvae
