// AMX int8: tiles of 16 outputs x 64 inputs times 64 inputs x 16 members; everything else is AVX-512.
//
// Sixteen quads in a row are a B tile as they stand, and a C tile row is one vector of lanes, so tiles need no
// packing beyond the weights'. Two output tiles by the two halves of a group use all eight tile registers:
// 0 .. 3 accumulate, 4 and 5 hold weights, 6 and 7 members; four loads for four products.
#pragma once

#include "simd_avx512.hpp"

#ifdef ES_AMX_EMULATED
#include "amx_emulated.hpp"
#else
#include "amx_tiles.hpp"
#endif

namespace es {
namespace {

struct Amx : Avx512Base {
    static constexpr const char* kName = "amx";
    static constexpr int kRows = 32;
    static constexpr int kGroups = 4;
    static constexpr bool kPipelined = true;

    using Operand = Quad;  // signed, as it is

    static void enter() { amx::configure(); }
    static void leave() { amx::release(); }

    static ES_INLINE Operand operand(Quad quad) { return quad; }

    // Panel from [k4][kRows][4]: [in / 64][kRows][64]; inputs beyond `in` are zero.
    static size_t panel_bytes(int in) { return size_t(kRows) * size_t((in + 63) / 64 * 64); }
    static void pack_panel(const int8_t* weights, int in, uint8_t* panel) {
        if (in % 64) memset(panel, 0, panel_bytes(in));
        for (int k = 0; k < in; k += 4)
            for (int row = 0; row < kRows; ++row, weights += 4)
                memcpy(panel + k / 64 * 64 * kRows + 64 * row + k % 64, weights, 4);
    }

    static ES_INLINE I32 dot(I32 acc, const Operand& x, Quad b) {
        return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)(x ^ int8_t(-128)), (__m512i)b);
    }

    // Calls between(k, in / 64) after the products of each 64 inputs are under way. Operands beyond `in` may hold
    // anything readable: their weights are zero.
    template <class Between>
    static ES_INLINE void gemm(const uint8_t* panel, const Operand* x0, const Operand* x1, int in, I32 (*acc)[2],
                               Between between) {
        const int parts = (in + 63) / 64;
        amx::zero<0>(), amx::zero<1>(), amx::zero<2>(), amx::zero<3>();
        for (int part = 0; part < parts; ++part, panel += 64 * kRows, x0 += 16, x1 += 16) {
            amx::load<4>(panel, 64);
            amx::load<6>(x0, 64);
            amx::load<7>(x1, 64);
            amx::dot<0, 4, 6>();
            amx::dot<1, 4, 7>();
            amx::load<5>(panel + 64 * 16, 64);
            amx::dot<2, 5, 6>();
            amx::dot<3, 5, 7>();
            between(part, parts);
        }
        amx::store<0>(&acc[0][0], 128), amx::store<1>(&acc[0][1], 128);
        amx::store<2>(&acc[16][0], 128), amx::store<3>(&acc[16][1], 128);
    }
    static ES_INLINE void gemm(const uint8_t* panel, const Operand* x0, const Operand* x1, int in, I32 (*acc)[2]) {
        gemm(panel, x0, x1, in, acc, [](int, int) {});
    }

    // Four independent accumulators, operands in tile registers: the instruction's throughput and nothing else.
    static int64_t peak(int64_t rounds) {
        alignas(64) static const int8_t bytes[1024] = {};
        enter();
        amx::zero<0>(), amx::zero<1>(), amx::zero<2>(), amx::zero<3>();
        amx::load<4>(bytes, 64), amx::load<5>(bytes, 64), amx::load<6>(bytes, 64), amx::load<7>(bytes, 64);
        for (int64_t round = 0; round < rounds; ++round) {
            amx::dot<0, 4, 6>(), amx::dot<1, 4, 7>(), amx::dot<2, 5, 6>(), amx::dot<3, 5, 7>();
        }
        alignas(64) I32 out[16];
        amx::store<0>(out, 64), amx::store<1>(out, 64), amx::store<2>(out, 64), amx::store<3>(out, 64);
        leave();
        return rounds * 4 * 16 * 16 * 64;
    }
};

}  // namespace
}  // namespace es
