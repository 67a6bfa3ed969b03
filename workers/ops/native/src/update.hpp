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
    Quad* quads;        // [kDepth / 4]
    Operand* columns;   // [sign][lane block][kDepth / 4]
    int8_t* rows;       // [kDepth / 4][kRows][4]
    uint8_t* panel[2];  // [sign]
    int blocks;         // lane blocks, even

    Accumulator(const Votes& v, const Tensor& t, Arena& arena) : votes(v), tensor(t) {
        blocks = int((t.in + 2 * W - 1) / (2 * W)) * 2;
        quads = arena.take<Quad>(kDepth / 4);
        columns = arena.take<Operand>(size_t(2 * blocks) * (kDepth / 4));
        rows = arena.take<int8_t>(size_t(kRows) * kDepth);
        for (auto& p : panel) p = arena.take<uint8_t>(I::panel_bytes(kDepth));
    }

    // Factor entries `offset` .. of the k-th (unit, r) of a list; `size` entries a rank.
    const int8_t* factor(const uint32_t* list, size_t k, int64_t offset, int64_t size) const {
        const size_t unit = list[k / size_t(votes.rank)], r = k % size_t(votes.rank);
        return votes.factors + unit * votes.factor_stride + offset + int64_t(r) * size;
    }

    // to[k / 4][entry][k mod 4] = entry `begin + entry` of the k-th factor; zero beyond its size and beyond `count`.
    template <int WIDTH>
    void interleave(const uint32_t* list, size_t first, size_t count, int64_t offset, int64_t size, int64_t begin,
                    int8_t* to) {
        const int64_t left = size > begin ? size - begin : 0, present = left < WIDTH ? left : WIDTH;
        for (size_t k = 0; k < kDepth; k += 4, to += 4 * WIDTH) {
            int8_t four[4][WIDTH];
            for (size_t j = 0; j < 4; ++j) {
                if (k + j < count && present == WIDTH) {
                    memcpy(four[j], factor(list, first + k + j, offset, size) + begin, WIDTH);
                    continue;
                }
                memset(four[j], 0, WIDTH);
                if (k + j < count) memcpy(four[j], factor(list, first + k + j, offset, size) + begin, size_t(present));
            }
            for (int entry = 0; entry < WIDTH; ++entry)
                for (int j = 0; j < 4; ++j) to[4 * entry + j] = four[j][entry];
        }
        if (votes.sign_noise) take_signs(to - WIDTH * kDepth, WIDTH * kDepth);
    }

    static void take_signs(int8_t* values, int count) {
        for (int k = 0; k < count; ++k) values[k] = int8_t((values[k] > 0) - (values[k] < 0));
    }

    // Columns of B: lanes are i.
    void pack_columns(int sign, const uint32_t* list, size_t first, size_t count) {
        for (int block = 0; block < blocks; ++block) {
            interleave<W>(list, first, count, tensor.second, tensor.in, int64_t(block) * W, (int8_t*)quads);
            Operand* to = columns + (sign * blocks + block) * (kDepth / 4);
            for (int k = 0; k < kDepth / 4; ++k) to[k] = I::operand(quads[k]);
        }
    }

    void pack_rows(int sign, const uint32_t* list, size_t first, size_t count, int64_t row) {
        interleave<kRows>(list, first, count, tensor.first, tensor.out, row, rows);
        I::pack_panel(rows, kDepth, panel[sign]);
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
                    if (active[sign]) pack_rows(sign, lists[sign], first, count[sign], row);
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

// Moves the weights of W lanes; returns -1 in the lanes that moved.
template <class I>
ES_INLINE typename I::I32 apply_lanes(int8_t* parameters, const int32_t* sums, uint32_t least) {
    using I32 = typename I::I32;
    I32 z;
    memcpy(&z, sums, sizeof z);
    const I32 size = z < 0 ? -z : z;  // 2^31 stays itself, which is right as an unsigned number
    const I32 moves = (typename I::U32)size >= least;
    const I32 old = I::widen(parameters);
    const I32 moved = I::clip(old + (z > 0 ? I::broadcast(1) : I::broadcast(-1)));
    const auto bytes = __builtin_convertvector(moves ? moved : old, typename I::I8);
    memcpy(parameters, &bytes, sizeof bytes);
    return moves;
}

template <class I>
int64_t apply(int8_t* parameters, const int32_t* sums, int64_t n, uint32_t least) {
    typename I::I32 count = {};  // at most n / W in a lane: n is below 2^31 (driver.cpp)
    int64_t done = 0, moved = 0;
    for (; done + I::W <= n; done += I::W) count -= apply_lanes<I>(parameters + done, sums + done, least);
    for (int lane = 0; lane < I::W; ++lane) moved += count[lane];
    if (done == n) return moved;

    int8_t last_parameters[I::W] = {};
    int32_t last_sums[I::W] = {};
    memcpy(last_parameters, parameters + done, size_t(n - done));
    memcpy(last_sums, sums + done, size_t(n - done) * sizeof *sums);
    count = apply_lanes<I>(last_parameters, last_sums, least);
    memcpy(parameters + done, last_parameters, size_t(n - done));
    for (int lane = 0; lane < n - done; ++lane) moved -= count[lane];
    return moved;
}

}  // namespace
}  // namespace es
