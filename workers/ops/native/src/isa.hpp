// Fills the kernel table of one instruction set from the templates.
#pragma once

#include "forward.hpp"
#include "noise.hpp"
#include "update.hpp"

namespace es {
namespace {

// Multiply-adds of the block product on operands that stay in L1: what the instruction can do at most.
template <class I>
int64_t peak(int64_t rounds) {
    return I::peak(rounds);
}

template <class I>
constexpr Kernels table() {
    return {I::kName,        I::W,          model_bytes<I>,         pack_model<I>,      tile_bytes<I>, forward_tile<I>,
            noise_unit<I>, accumulate_bytes<I>, accumulate_rows<I>, apply<I>, peak<I>};
}

}  // namespace
}  // namespace es
