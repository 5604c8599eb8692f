// GroupSort of pairs side by side, where it has a way of its own:
//
// sort_pairs<streaming>(x, y, count, write) sorts `count` pairs; write(bits, pairs) receives the bits of so many.
// unsort_pairs<streaming>(x, y, count, bits) swaps pair i where its bit is set, with which bits.word(i) begins.
// y may be x.
#pragma once

#if defined(__AVX512F__)
#include "pairs_in_vectors.hpp"
#elif defined(__AVX2__)
#include "pairs_apart.hpp"
#endif

namespace lipvae::LIPVAE_ISA {

#if defined(__AVX2__)
constexpr bool has_pairs = true;
#else
constexpr bool has_pairs = false;
template <bool streaming, class T, class Write>
void sort_pairs(const T* x, T* y, int count, Write&& write);
template <bool streaming, class T, class Bits>
void unsort_pairs(const T* x, T* y, int count, const Bits& bits);
#endif

}  // namespace lipvae::LIPVAE_ISA
