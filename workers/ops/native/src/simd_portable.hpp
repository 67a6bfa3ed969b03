// The baseline: compiler vectors, and pmaddwd where the target always has it (x86-64 includes SSE2).
#pragma once

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "simd_pairs.hpp"

namespace es {
namespace {

struct Portable : Pairs<Portable, 4> {
    static constexpr const char* kName = "portable";
    static constexpr int kRows = 4;
    static constexpr int kGroups = 8;
    static constexpr bool kPipelined = false;

#ifdef __SSE2__
    static ES_INLINE I32 madd(I32 acc, I16 a, I16 b) { return acc + (I32)_mm_madd_epi16((__m128i)a, (__m128i)b); }
    static ES_INLINE I16 multiply_high(I16 a, I16 b) { return (I16)_mm_mulhi_epi16((__m128i)a, (__m128i)b); }

    // Independent accumulators, operands in registers: the instruction's throughput and nothing else.
    static int64_t peak(int64_t rounds) {
        __m128i sum[12] = {}, a = _mm_set1_epi16(1), b = a;
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) asm volatile("" : "+x"(sum[i]));  // or equal sums would be computed once
        for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i) {
                asm volatile("" : "+x"(a), "+x"(b));
                sum[i] = _mm_add_epi32(sum[i], _mm_madd_epi16(a, b));
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) asm volatile("" ::"x"(sum[i]));
        return rounds * 12 * 8;
    }
#else
    static ES_INLINE I32 madd(I32 acc, I16 a, I16 b) { return acc + low(a) * low(b) + high(a) * high(b); }

    static int64_t peak(int64_t) { return 0; }  // there is no one instruction to measure
#endif

    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace es
