// Dot products from multiply-adds of int16 pairs (pmaddwd and its portable spelling): the baseline and AVX2.
//
// maddubs would do twice the work an instruction, but it saturates at 16 bits; operands widened to int16 are
// exact without a correction. Activations are widened once a matrix, weights once a generation.
#pragma once

#include "simd.hpp"

namespace es {
namespace {

// I supplies W, madd(I32 acc, I16 a, I16 b), and kRows outputs a block.
template <class I, int W_>
struct Pairs : Generic<W_> {
    using G = Generic<W_>;
    using I32 = typename G::I32;
    using I16 = typename G::I16;
    using Quad = typename G::Quad;
    static constexpr int W = W_;
    static constexpr int kDotOffset = 0;

    static ES_INLINE Quad norm_quad(Quad x, Quad w, const typename G::Quotient& by) {
        return norm_with_floats<I>(x, w, by);
    }

    struct Operand {
        I16 even, odd;
    };

    static ES_INLINE Operand operand(Quad quad) { return {G::even(quad), G::odd(quad)}; }

    // Panel from [k4][kRows][4]: for each k div 4, weights of the even, then of the odd activations,
    // [k4][2][kRows][2] int16.
    static size_t panel_bytes(int in) { return size_t(I::kRows) * size_t(in) * 2; }
    static void pack_panel(const int8_t* weights, int in, uint8_t* panel) {
        int16_t* out = (int16_t*)panel;
        for (int k = 0; k < in; k += 4, weights += 4 * I::kRows, out += 4 * I::kRows)
            for (int row = 0; row < I::kRows; ++row)
                for (int j = 0; j < 4; ++j) out[2 * I::kRows * (j & 1) + 2 * row + j / 2] = weights[4 * row + j];
    }

    static ES_INLINE I32 dot(I32 acc, const Operand& x, Quad b) {
        return I::madd(I::madd(acc, x.even, G::even(b)), x.odd, G::odd(b));
    }

    template <int ROWS>
    static ES_INLINE void block(const int16_t* w, const Operand* x0, const Operand* x1, int quads, I32 (*acc)[2]) {
        I32 sum[ROWS][2] = {};
        for (int k = 0; k < quads; ++k, w += 4 * ROWS) {
            for (int half = 0; half < 2; ++half) {
                I16 a0 = half ? x0[k].odd : x0[k].even, a1 = half ? x1[k].odd : x1[k].even;
#pragma GCC unroll 16
                for (int row = 0; row < ROWS; ++row) {
                    int32_t two;
                    memcpy(&two, w + 2 * (half * ROWS + row), 4);
                    I16 pair = (I16)G::broadcast(two);
                    sum[row][0] = I::madd(sum[row][0], a0, pair);
                    sum[row][1] = I::madd(sum[row][1], a1, pair);
                }
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) acc[row][0] = sum[row][0], acc[row][1] = sum[row][1];
    }

    static ES_INLINE void gemm(const uint8_t* panel, const Operand* x0, const Operand* x1, int in, I32 (*acc)[2]) {
        block<I::kRows>((const int16_t*)panel, x0, x1, in / 4, acc);
    }
};

}  // namespace
}  // namespace es
