// AVX2: pmaddwd on int16 pairs, 8 lanes.
#pragma once

#include <immintrin.h>

#include "simd_pairs.hpp"

namespace es {
namespace {

struct Avx2 : Pairs<Avx2, 8> {
    static constexpr const char* kName = "avx2";
    static constexpr int kRows = 4;
    static constexpr int kGroups = 4;
    static constexpr bool kPipelined = false;

    static ES_INLINE I32 madd(I32 acc, I16 a, I16 b) {
        return (I32)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16((__m256i)a, (__m256i)b));
    }
    static ES_INLINE I16 multiply_high(I16 a, I16 b) { return (I16)_mm256_mulhi_epi16((__m256i)a, (__m256i)b); }

    // Saturating packs leave [a b c d] of four lanes in each 128 bits; the shuffle turns that into four quads.
    static ES_INLINE Quad transpose4(__m256i packed) {
        const __m256i order = _mm256_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400, 0x0f0b0703, 0x0e0a0602,
                                               0x0d090501, 0x0c080400);
        return (Quad)_mm256_shuffle_epi8(packed, order);
    }
    static ES_INLINE Quad clip_quad(I32 a, I32 b, I32 c, I32 d) {
        __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b), cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
        return transpose4(_mm256_max_epi8(_mm256_packs_epi16(ab, cd), _mm256_set1_epi8(-127)));
    }
    static ES_INLINE __m256i divide16(__m256i value, const Divisor& divisor) {
        value = _mm256_min_epi16(value, _mm256_set1_epi16(int16_t(divisor.bound)));
        value = _mm256_max_epi16(value, _mm256_set1_epi16(int16_t(-divisor.bound)));
        value = _mm256_add_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(1));
        value = _mm256_mulhi_epi16(value, _mm256_set1_epi16(int16_t(divisor.multiplier)));
        return _mm256_sra_epi16(value, _mm_cvtsi32_si128(divisor.shift - 16));
    }
    static ES_INLINE Quad divide_quad(I32 a, I32 b, I32 c, I32 d, const Divisor& divisor) {
        __m256i ab = _mm256_packs_epi32((__m256i)(a >> 4), (__m256i)(b >> 4));
        __m256i cd = _mm256_packs_epi32((__m256i)(c >> 4), (__m256i)(d >> 4));
        return transpose4(_mm256_packs_epi16(divide16(ab, divisor), divide16(cd, divisor)));
    }

    static ES_INLINE I32 floor(F32 values) { return (I32)_mm256_cvtps_epi32(_mm256_floor_ps((__m256)values)); }

    static ES_INLINE I32 exp2(const int32_t* mantissa, I32 z) {
        __m256i picked = _mm256_i32gather_epi32(mantissa, (__m256i)(z & 15), 4);
        return (I32)_mm256_srlv_epi32(picked, (__m256i)(15 - (z >> 4)));
    }

    static ES_INLINE void multiply_wide(V::U32 a, uint32_t m, V::U32& high, V::U32& low) {
        const __m256i factor = _mm256_set1_epi32(int32_t(m));
        __m256i evens = _mm256_mul_epu32((__m256i)a, factor);
        __m256i odds = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
        low = (V::U32)_mm256_blend_epi32(evens, _mm256_slli_epi64(odds, 32), 0xaa);
        high = (V::U32)_mm256_blend_epi32(_mm256_srli_epi64(evens, 32), odds, 0xaa);
    }

    // Independent accumulators, operands in registers: the instruction's throughput and nothing else.
    static int64_t peak(int64_t rounds) {
        __m256i sum[12] = {}, a = _mm256_set1_epi16(1), b = a;
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) asm volatile("" : "+x"(sum[i]));  // or equal sums would be computed once
        for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i) {
                asm volatile("" : "+x"(a), "+x"(b));
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(a, b));
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) asm volatile("" ::"x"(sum[i]));
        return rounds * 12 * 16;
    }

    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace es
