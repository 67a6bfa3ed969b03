// AArch64 with the dot-product extension: sdot multiplies signed bytes, so activations stay as they are.
#pragma once

#include <arm_neon.h>

#include "simd.hpp"

namespace es {
namespace {

struct Neon : Generic<4> {
    static constexpr const char* kName = "neon";
    static constexpr int W = 4;
    static constexpr int kRows = 8;
    static constexpr int kGroups = 8;
    static constexpr bool kPipelined = false;
    static constexpr int kDotOffset = 0;

    using Operand = Quad;

    static ES_INLINE Quad norm_quad(Quad x, Quad w, const Quotient& by) { return norm_with_floats<Neon>(x, w, by); }

    static void enter() {}
    static void leave() {}

    static ES_INLINE Operand operand(Quad quad) { return quad; }

    // The panel is [k4][kRows][4] as it comes.
    static size_t panel_bytes(int in) { return size_t(kRows) * size_t(in); }
    static void pack_panel(const int8_t* weights, int in, uint8_t* panel) { memcpy(panel, weights, panel_bytes(in)); }

    static ES_INLINE I32 dot(I32 acc, const Operand& x, Quad b) {
        return (I32)vdotq_s32((int32x4_t)acc, (int8x16_t)x, (int8x16_t)b);
    }

    template <int FROM>
    static ES_INLINE void four_rows(int32x4_t (*sum)[2], int8x16_t weights, int8x16_t a0, int8x16_t a1) {
        sum[FROM][0] = vdotq_laneq_s32(sum[FROM][0], a0, weights, 0);
        sum[FROM][1] = vdotq_laneq_s32(sum[FROM][1], a1, weights, 0);
        sum[FROM + 1][0] = vdotq_laneq_s32(sum[FROM + 1][0], a0, weights, 1);
        sum[FROM + 1][1] = vdotq_laneq_s32(sum[FROM + 1][1], a1, weights, 1);
        sum[FROM + 2][0] = vdotq_laneq_s32(sum[FROM + 2][0], a0, weights, 2);
        sum[FROM + 2][1] = vdotq_laneq_s32(sum[FROM + 2][1], a1, weights, 2);
        sum[FROM + 3][0] = vdotq_laneq_s32(sum[FROM + 3][0], a0, weights, 3);
        sum[FROM + 3][1] = vdotq_laneq_s32(sum[FROM + 3][1], a1, weights, 3);
    }

    static ES_INLINE void gemm(const uint8_t* panel, const Operand* x0, const Operand* x1, int in, I32 (*acc)[2]) {
        int32x4_t sum[kRows][2];
        for (auto& row : sum) row[0] = row[1] = vdupq_n_s32(0);
        const int8_t* w = (const int8_t*)panel;
        for (int k = 0; k < in / 4; ++k, w += 4 * kRows) {
            const int8x16_t a0 = (int8x16_t)x0[k], a1 = (int8x16_t)x1[k];
            four_rows<0>(sum, vld1q_s8(w), a0, a1);
            four_rows<4>(sum, vld1q_s8(w + 16), a0, a1);
        }
        for (int row = 0; row < kRows; ++row) acc[row][0] = (I32)sum[row][0], acc[row][1] = (I32)sum[row][1];
    }

    static int64_t peak(int64_t rounds) {
        int32x4_t sum[16];
        int8x16_t a = vdupq_n_s8(1), b = a;
        for (auto& s : sum) {
            s = vdupq_n_s32(0);
            asm volatile("" : "+w"(s));  // or equal sums would be computed once
        }
        for (int64_t round = 0; round < rounds; ++round) {
            asm volatile("" : "+w"(a), "+w"(b));
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sum[i] = vdotq_s32(sum[i], a, b);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) asm volatile("" ::"w"(sum[i]));
        return rounds * 16 * 16;
    }
};

}  // namespace
}  // namespace es
