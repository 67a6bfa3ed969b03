// Fills the kernel table of one instruction set from the templates.
#pragma once

#include "forward.hpp"
#include "noise.hpp"
#include "update.hpp"

namespace es {
namespace {

template <class I>
constexpr Kernels table() {
    Kernels k{};
    k.name = I::kName, k.lanes = I::W, k.groups = I::kGroups;
    k.model_bytes = model_bytes<I>, k.pack_model = pack_model<I>;
    k.tile_bytes = tile_bytes<I>, k.forward_tile = forward_tile<I>;
    k.noise_unit = noise_unit<I>;
    k.accumulate_bytes = accumulate_bytes<I>, k.accumulate_rows = accumulate_rows<I>;
    k.apply = apply<I>, k.peak = I::peak;
    return k;
}

}  // namespace
}  // namespace es
