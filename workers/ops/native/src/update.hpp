// Vote accumulation and the thresholded update (specs/egg.md, Votes and update).
//
// Z = sum over units of vote A B^T is a matrix product whose depth runs over the units, so it goes through the
// forward pass's block product: outputs are the rows of A, lanes are the columns of B. Units that count -1 form
// a second product that is subtracted; abstentions cost nothing.
#pragma once

#include "egg_layout.hpp"
#include "simd.hpp"

namespace es {
namespace {

template <class I>
struct Accumulator {
    static constexpr int W = I::W;
    static constexpr int kRows = I::kRows;
    static constexpr int kDepth = 256;  // units x rank taken together: a panel and two lane blocks stay in L1
    using I32 = typename I::I32;
    using Quad = typename I::Quad;
    using Operand = typename I::Operand;

    const Votes& votes;
    const Tensor& tensor;
    Quad* quads;         // [kDepth / 4]
    Operand* columns;    // [sign][lane block][kDepth / 4]
    int8_t* rows;        // [kRows][kDepth]
    uint8_t* panel[2];   // [sign]
    int blocks;          // lane blocks, even

    Accumulator(const Votes& v, const Tensor& t, Arena& arena) : votes(v), tensor(t) {
        blocks = int((t.in + 2 * W - 1) / (2 * W)) * 2;
        quads = arena.take<Quad>(kDepth / 4);
        columns = arena.take<Operand>(size_t(2 * blocks) * (kDepth / 4));
        rows = arena.take<int8_t>(size_t(kRows) * kDepth);
        for (auto& p : panel) p = arena.take<uint8_t>(I::panel_bytes(kDepth));
    }

    ES_INLINE int8_t entry(int8_t value) const { return votes.sign_noise ? int8_t((value > 0) - (value < 0)) : value; }

    // Factor entries `offset` .. of the k-th (unit, r) of a list; `size` entries a rank.
    const int8_t* factor(const uint32_t* list, size_t k, int64_t offset, int64_t size) const {
        const size_t unit = list[k / size_t(votes.rank)], r = k % size_t(votes.rank);
        return votes.factors + unit * votes.factor_stride + offset + int64_t(r) * size;
    }

    // Columns of B: lanes are i, depth is padded with zeros up to kDepth.
    void pack_columns(int sign, const uint32_t* list, size_t first, size_t count) {
        for (int block = 0; block < blocks; ++block) {
            const int64_t begin = int64_t(block) * W, lanes = tensor.in - begin < W ? tensor.in - begin : W;
            memset(quads, 0, sizeof(Quad) * (kDepth / 4));
            for (size_t k = 0; k < count; ++k) {
                const int8_t* from = factor(list, first + k, tensor.second, tensor.in) + begin;
                int8_t* to = (int8_t*)(quads + k / 4) + k % 4;
                for (int64_t lane = 0; lane < lanes; ++lane) to[4 * lane] = entry(from[lane]);
            }
            I::expand(quads, kDepth / 4, columns + (sign * blocks + block) * (kDepth / 4));
        }
    }

    void pack_rows(int sign, const uint32_t* list, size_t first, size_t count, int64_t row, int64_t end) {
        memset(rows, 0, size_t(kRows) * kDepth);
        const int64_t present = end - row < kRows ? end - row : kRows;
        for (size_t k = 0; k < count; ++k) {
            const int8_t* from = factor(list, first + k, tensor.first, tensor.out) + row;
            for (int64_t o = 0; o < present; ++o) rows[size_t(o) * kDepth + k] = entry(from[o]);
        }
        I::pack_panel(rows, kRows, kDepth, panel[sign]);
    }

    void add_block(const bool (&active)[2], int block, int64_t row, int64_t end, int32_t* sums) {
        I32 acc[2][kRows][2] = {};
        for (int sign = 0; sign < 2; ++sign) {
            const Operand* x = columns + (sign * blocks + block) * (kDepth / 4);
            if (active[sign]) I::gemm(panel[sign], x, x + kDepth / 4, kDepth, acc[sign]);
        }
        for (int i = 0; i < kRows && row + i < end; ++i)
            for (int half = 0; half < 2; ++half) {
                const I32 change = acc[0][i][half] - acc[1][i][half];
                const int64_t begin = int64_t(block + half) * W;
                int32_t* to = sums + (row + i) * tensor.in + begin;
                const int64_t lanes = tensor.in - begin < W ? tensor.in - begin : W;
                if (lanes == W) {
                    I32 value;
                    memcpy(&value, to, sizeof value);
                    value += change;
                    memcpy(to, &value, sizeof value);
                } else {
                    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] += change[int(lane)];
                }
            }
    }

    void run(int64_t first_row, int64_t end_row, int32_t* sums) {
        const uint32_t* lists[2] = {votes.plus, votes.minus};
        const size_t depth[2] = {votes.num_plus * size_t(votes.rank), votes.num_minus * size_t(votes.rank)};
        for (size_t first = 0; first < depth[0] || first < depth[1]; first += kDepth) {
            size_t count[2];
            bool active[2];
            for (int sign = 0; sign < 2; ++sign) {
                count[sign] = first < depth[sign] ? (depth[sign] - first < kDepth ? depth[sign] - first : kDepth) : 0;
                active[sign] = count[sign] > 0;
                if (active[sign]) pack_columns(sign, lists[sign], first, count[sign]);
            }
            for (int64_t row = first_row; row < end_row; row += kRows) {
                for (int sign = 0; sign < 2; ++sign)
                    if (active[sign]) pack_rows(sign, lists[sign], first, count[sign], row, end_row);
                for (int block = 0; block < blocks; block += 2) add_block(active, block, row, end_row, sums);
            }
        }
    }

    void run_vector(int32_t* sums) const {
        const uint32_t* lists[2] = {votes.plus, votes.minus};
        const size_t count[2] = {votes.num_plus, votes.num_minus};
        for (int sign = 0; sign < 2; ++sign)
            for (size_t k = 0; k < count[sign]; ++k) {
                const int16_t* from = votes.products + lists[sign][k] * votes.product_stride + tensor.first;
                for (int64_t j = 0; j < tensor.in; ++j) {
                    const int32_t value = votes.sign_noise ? (from[j] > 0) - (from[j] < 0) : from[j];
                    sums[j] += sign ? -value : value;
                }
            }
    }
};

template <class I>
size_t accumulate_bytes(const Tensor& tensor) {
    Arena arena{nullptr};
    Accumulator<I> accumulator({}, tensor, arena);
    return arena.used;
}

template <class I>
void accumulate_rows(const Votes& votes, const Tensor& tensor, int64_t first_row, int64_t end_row, int32_t* sums,
                     uint8_t* scratch) {
    I::enter();
    Arena arena{scratch};
    Accumulator<I> accumulator(votes, tensor, arena);
    if (tensor.out) accumulator.run(first_row, end_row, sums + tensor.offset);
    else accumulator.run_vector(sums + tensor.offset);
    I::leave();
}

// Loops over plain arrays that the compiler vectorises for this instruction set.
template <class I>
int64_t apply(int8_t* parameters, const int32_t* sums, int64_t n, uint32_t least) {
    int64_t moved = 0;
    for (int64_t begin = 0; begin < n; begin += 4096) {
        const int64_t end = n - begin < 4096 ? n : begin + 4096;
        int32_t count = 0;
        for (int64_t j = begin; j < end; ++j) {
            const uint32_t size = sums[j] < 0 ? 0u - uint32_t(sums[j]) : uint32_t(sums[j]);
            const bool moves = size >= least;
            int value = parameters[j] + (sums[j] > 0 ? 1 : -1);
            value = value > 127 ? 127 : value < -127 ? -127 : value;
            parameters[j] = moves ? int8_t(value) : parameters[j];
            count += moves;
        }
        moved += count;
    }
    return moved;
}

}  // namespace
}  // namespace es
