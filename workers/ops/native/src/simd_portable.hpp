// The baseline: nothing beyond what the target's compiler assumes.
#pragma once

#include "simd_pairs.hpp"

namespace es {
namespace {

struct Portable : Pairs<Portable, 8> {
    static constexpr const char* kName = "portable";
    static constexpr int kRows = 4;
    static constexpr int kGroups = 4;
    static constexpr bool kPipelined = false;

    static ES_INLINE I32 madd(I32 acc, I16 a, I16 b) { return acc + low(a) * low(b) + high(a) * high(b); }

    // The baseline has no one instruction to measure.
    static int64_t peak(int64_t) { return 0; }

    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace es
