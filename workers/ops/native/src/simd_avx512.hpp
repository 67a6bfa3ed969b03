// AVX-512 VNNI: vpdpbusd multiplies unsigned by signed bytes, so activations are stored offset by 128 and each
// accumulator starts at -128 times the sum of its weights (exact modulo 2^32).
#pragma once

#include <immintrin.h>

#include "simd.hpp"

namespace es {
namespace {

// What AVX-512 does better than the generic vector code; shared by VNNI and AMX.
struct Avx512Base : Generic<16> {
    static constexpr int W = 16;
    static constexpr int kDotOffset = 128;

    static ES_INLINE I32 vec(__m512i v) { return (I32)v; }

    static ES_INLINE I32 widen(const int8_t* bytes) {
        return (I32)_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)bytes));
    }
    static ES_INLINE I16 multiply_high(I16 a, I16 b) { return (I16)_mm512_mulhi_epi16((__m512i)a, (__m512i)b); }

    // Saturating packs leave [a b c d] of four lanes in each 128 bits; the shuffle turns that into four quads.
    static ES_INLINE Quad transpose4(__m512i packed) {
        const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
        return (Quad)_mm512_shuffle_epi8(packed, order);
    }
    static ES_INLINE Quad clip_quad(I32 a, I32 b, I32 c, I32 d) {
        __m512i ab = _mm512_packs_epi32((__m512i)a, (__m512i)b), cd = _mm512_packs_epi32((__m512i)c, (__m512i)d);
        __m512i bytes = _mm512_packs_epi16(ab, cd);
        return transpose4(_mm512_max_epi8(bytes, _mm512_set1_epi8(-127)));
    }
    static ES_INLINE __m512i divide16(__m512i value, const Divisor& divisor) {
        value = _mm512_min_epi16(value, _mm512_set1_epi16(int16_t(divisor.bound)));
        value = _mm512_max_epi16(value, _mm512_set1_epi16(int16_t(-divisor.bound)));
        value = _mm512_add_epi16(_mm512_add_epi16(value, value), _mm512_set1_epi16(1));
        value = _mm512_mulhi_epi16(value, _mm512_set1_epi16(int16_t(divisor.multiplier)));
        return _mm512_sra_epi16(value, _mm_cvtsi32_si128(divisor.shift - 16));
    }
    static ES_INLINE Quad divide_quad(I32 a, I32 b, I32 c, I32 d, const Divisor& divisor) {
        __m512i ab = _mm512_packs_epi32((__m512i)(a >> 4), (__m512i)(b >> 4));
        __m512i cd = _mm512_packs_epi32((__m512i)(c >> 4), (__m512i)(d >> 4));
        return transpose4(_mm512_packs_epi16(divide16(ab, divisor), divide16(cd, divisor)));
    }

    static ES_INLINE I32 floor(F32 values) {
        return (I32)_mm512_cvt_roundps_epi32((__m512)values, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }

    // c((x w) div m), m >= 1, on int16: with q = x w, (2 q + 1) M >> (k + 1), M = round(2^k / m) in [2^14, 2^15), as in
    // Divisor; exact while |q| <= 128 m, beyond which it only has to stay beyond the clip. k = 14 + log2 m rounded up.
    struct Quotient {
        __m512i multiplier;  // M, twice in each lane
        __m512i shift;       // k - 15, or 0 for m = 1, where 2 q + 1 is doubled instead
        __m512i doubled;     // all ones where m = 1
    };
    static ES_INLINE Quotient quotient_by(I32 m) {
        const __m512i one = _mm512_set1_epi32(1), v = (__m512i)m;
        const __m512i power = _mm512_sub_epi32(_mm512_set1_epi32(32), _mm512_lzcnt_epi32(_mm512_sub_epi32(v, one)));
        const I32 k = (I32)power + 14;
        const F32 scaled = (F32)_mm512_cvtepi32_ps(_mm512_sllv_epi32(one, (__m512i)k)) / to_float(m);  // < 2^15
        const I32 multiplier = (I32)_mm512_cvtps_epi32((__m512)scaled);
        const I32 shift = greatest(k - 15, I32{});
        const __mmask16 is_one = _mm512_cmpeq_epi32_mask(v, one);
        return {twice(multiplier), twice(shift), _mm512_maskz_set1_epi32(is_one, -1)};
    }
    static ES_INLINE __m512i twice(I32 value) { return (__m512i)(value | (value << 16)); }
    static ES_INLINE __m512i divide(I16 product, const Quotient& by) {
        __m512i value = (__m512i)((product << 1) + 1);
        value = _mm512_adds_epi16(value, _mm512_and_si512(value, by.doubled));
        return _mm512_srav_epi16(_mm512_mulhi_epi16(value, by.multiplier), by.shift);
    }
    static ES_INLINE Quad norm_quad(Quad x, Quad w, const Quotient& by) {
        const I16 even_x = even(x), odd_x = odd(x);
        return join(clip((I16)divide(even_x * even(w), by)), clip((I16)divide(odd_x * odd(w), by)));
    }

    static ES_INLINE I32 exp2(const int32_t* mantissa, I32 z) {
        __m512i picked = _mm512_permutexvar_epi32((__m512i)z, _mm512_loadu_si512(mantissa));
        return (I32)_mm512_srlv_epi32(picked, (__m512i)(15 - (z >> 4)));
    }

    static ES_INLINE void multiply_wide(U32 a, uint32_t m, U32& high, U32& low) {
        const __m512i factor = _mm512_set1_epi32(int32_t(m));
        __m512i evens = _mm512_mul_epu32((__m512i)a, factor);
        __m512i odds = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
        low = (U32)_mm512_mask_blend_epi32(0xaaaa, evens, _mm512_slli_epi64(odds, 32));
        high = (U32)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(evens, 32), odds);
    }

    // The word transpose below leaves counters 4 i .. 4 i + 3 of register j = lane mod 4 in order.
    static ES_INLINE int counter_of_lane(int lane) { return 4 * (lane & 3) + lane / 4; }
    static ES_INLINE void store_entries(const U32* words, int8_t* out) {
        __m512i ab0 = _mm512_unpacklo_epi32((__m512i)words[0], (__m512i)words[1]);
        __m512i ab1 = _mm512_unpackhi_epi32((__m512i)words[0], (__m512i)words[1]);
        __m512i cd0 = _mm512_unpacklo_epi32((__m512i)words[2], (__m512i)words[3]);
        __m512i cd1 = _mm512_unpackhi_epi32((__m512i)words[2], (__m512i)words[3]);
        const __m512i bytes[4] = {_mm512_unpacklo_epi64(ab0, cd0), _mm512_unpackhi_epi64(ab0, cd0),
                                  _mm512_unpacklo_epi64(ab1, cd1), _mm512_unpackhi_epi64(ab1, cd1)};
        for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + 64 * j, lookup(bytes[j]));
    }
#ifdef __AVX512VBMI__  // every CPU with AMX, not every CPU with VNNI
    static ES_INLINE __m512i lookup(__m512i index) {
        const __m512i* table = (const __m512i*)kNoiseTable;
        const __m512i lower = _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 1));
        const __m512i upper =
            _mm512_permutex2var_epi8(_mm512_load_si512(table + 2), index, _mm512_load_si512(table + 3));
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper);
    }
#else
    // Eight rows of 16 entries: the table is odd (T[255 - b] = -T[b]), so its upper half is enough.
    static ES_INLINE __m512i lookup(__m512i index) {
        const __mmask64 upper = _mm512_movepi8_mask(index);
        const __m512i mirrored = _mm512_xor_si512(index, _mm512_set1_epi8(0x7f));
        const __m512i entry = _mm512_mask_blend_epi8(upper, mirrored, index);  // low seven bits count
        const __m512i row = _mm512_and_si512(_mm512_srli_epi16(entry, 4), _mm512_set1_epi8(7));
        const __m512i column = _mm512_and_si512(entry, _mm512_set1_epi8(15));
        __m512i value = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            const __m128i values = _mm_load_si128((const __m128i*)(kNoiseTable + 128 + 16 * r));
            const __mmask64 here = _mm512_cmpeq_epi8_mask(row, _mm512_set1_epi8(int8_t(r)));
            value = _mm512_mask_shuffle_epi8(value, here, _mm512_broadcast_i32x4(values), column);
        }
        return _mm512_mask_sub_epi8(_mm512_sub_epi8(_mm512_setzero_si512(), value), upper, value,
                                    _mm512_setzero_si512());
    }
#endif
};

struct Avx512Vnni : Avx512Base {
    static constexpr const char* kName = "avx512vnni";
    static constexpr int kRows = 8;
    static constexpr int kGroups = 2;
    static constexpr bool kPipelined = false;

    using Operand = Quad;  // activation + 128 as unsigned bytes

    static void enter() {}
    static void leave() {}

    static ES_INLINE Operand operand(Quad quad) { return quad ^ int8_t(-128); }

    // Panel from [k4][kRows][4]: kRows starting values in a line of their own, then the weights as they are.
    static size_t panel_bytes(int in) { return 64 + size_t(kRows) * size_t(in); }
    static void pack_panel(const int8_t* weights, int in, uint8_t* panel) {
        const size_t bytes = size_t(kRows) * size_t(in);
        memcpy(panel + 64, weights, bytes);
        __m256i sums = _mm256_setzero_si256();
        for (size_t at = 0; at < bytes; at += 4 * kRows)
            sums = _mm256_dpbusd_epi32(sums, _mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)(weights + at)));
        static_assert(kRows == 8, "one sum for each row");
        _mm512_store_si512(
            panel, _mm512_slli_epi32(_mm512_castsi256_si512(_mm256_sub_epi32(_mm256_setzero_si256(), sums)), 7));
    }

    static ES_INLINE I32 dot(I32 acc, const Operand& x, Quad b) {
        return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)b);
    }

    // As the intrinsic, but GCC 12 keeps the accumulator in one register: with the intrinsic it copies it each time.
    static ES_INLINE void add_dot(__m512i& acc, __m512i unsigned_bytes, __m512i signed_bytes) {
        asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
    }

    template <int ROWS>
    static ES_INLINE void block(const uint8_t* panel, const Operand* x0, const Operand* x1, int quads, I32 (*acc)[2]) {
        const int32_t* start = (const int32_t*)panel;
        const int32_t* w = (const int32_t*)(panel + 64);
        __m512i sum[ROWS][2];
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) sum[row][0] = sum[row][1] = _mm512_set1_epi32(start[row]);
        for (int k = 0; k < quads; ++k, w += ROWS) {
            __m512i a0 = (__m512i)x0[k], a1 = (__m512i)x1[k];
#pragma GCC unroll 16
            for (int row = 0; row < ROWS; ++row) {
                __m512i weight = _mm512_set1_epi32(w[row]);
                add_dot(sum[row][0], a0, weight);
                add_dot(sum[row][1], a1, weight);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) acc[row][0] = (I32)sum[row][0], acc[row][1] = (I32)sum[row][1];
    }

    static ES_INLINE void gemm(const uint8_t* panel, const Operand* x0, const Operand* x1, int in, I32 (*acc)[2]) {
        block<kRows>(panel, x0, x1, in / 4, acc);
    }

    // Independent accumulators, operands in registers: the instruction's throughput and nothing else.
    static int64_t peak(int64_t rounds) {
        __m512i sum[16] = {}, a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) asm volatile("" : "+v"(sum[i]));  // or equal sums would be computed once
        for (int64_t round = 0; round < rounds; ++round) {
            asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) asm volatile("" ::"v"(sum[i]));
        return rounds * 16 * 64;
    }
};

}  // namespace
}  // namespace es
