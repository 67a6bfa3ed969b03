// The integer loss (specs/egg.md, Score).
#pragma once

#include <cstdint>

namespace es {
namespace {

// floor(2^(19 + f/16)): X[i] = trunc(16 2^(i/16)) = kExp2Mantissa[i mod 16] >> (15 - i div 16), because a floor
// of a floor is the floor.
alignas(64) constexpr int32_t kExp2Mantissa[16] = {524288, 547500, 571740, 597053, 623487, 651091, 679917, 710019,
                                                   741455, 774282, 808562, 844360, 881743, 920781, 961548, 1004119};

// Least s in [2^27, 2^28) with 16 log2(s / 2^27) >= j, for j = 1 .. 15.
constexpr uint32_t kLog2Steps[15] = {140160055, 146365471, 152845624, 159612678, 166679335,
                                     174058859, 181765103, 189812532, 198216250, 206992034,
                                     216156354, 225726413, 235720175, 246156399, 257054674};

// trunc(16 log2(s / 16)) for s in [256, 2^28).
inline int32_t log_sum_exp(uint32_t s) {
    int exponent = 31 - __builtin_clz(s);
    uint32_t normalised = s << (27 - exponent);
    int32_t result = 16 * (exponent - 4);
    for (uint32_t step : kLog2Steps) result += normalised >= step;
    return result;
}

}  // namespace
}  // namespace es
