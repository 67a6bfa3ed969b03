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

    // What madd does on operands from memory; the baseline has no instruction to measure.
    static int64_t peak(int64_t rounds) {
        I32 sum[8] = {};
        I16 a = I16{} + int16_t{1}, b = a;
        for (int64_t round = 0; round < rounds; ++round)
            for (int i = 0; i < 8; ++i) {
                asm volatile("" : "+m"(a), "+m"(b));
                sum[i] = madd(sum[i], a, b);
            }
        asm volatile("" ::"m"(sum));
        return rounds * 8 * 2 * W;
    }

    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace es
