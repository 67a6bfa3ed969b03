// EGG over a tile of members: all layers and all bytes in one pass, activations resident in cache.
//
// A tile is `groups` groups of W pairs; a group runs its even members in one vector of lanes and its odd
// members in a second ("half" 0 and 1), which share the noise. Without noise the halves are 2 W rows of text.
// Buffers indexed [half] below have 2 * groups entries. Arithmetic and names: specs/egg.md.
#pragma once

#include "lse.hpp"
#include "model.hpp"

namespace es {
namespace {

// Everything a tile holds. RANK: 0 without noise, 1, or -1 for any rank.
template <class I, int RANK>
struct Tile {
    static constexpr int W = I::W;
    using I32 = typename I::I32;
    using I16 = typename I::I16;
    using F32 = typename I::F32;
    using Quad = typename I::Quad;
    using Operand = typename I::Operand;

    // Noise of one matrix for one group.
    struct MatrixNoise {
        I32* start;  // [rank], what a dot product with B starts from
        Quad* b;     // [rank][in / 4]
        int8_t* a;   // [rank][out][W]
    };

    const Forward& f;
    const int groups, halves, quads, rank;
    const size_t first;
    const int noise_shift;
    Arena arena;
    Model<I> model;

    Quad *x, *state, *y0, *y1, *gate, *vectors, *embedding_b;
    Operand *left, *right, *wide;
    int8_t* perturbed;  // one vector of one member
    uint8_t* noise;
    size_t noise_stride;   // bytes of one group
    size_t* noise_offset;  // [matrix]
    const uint8_t** text;  // [half * W]
    int32_t* total;        // [half * W]

    Tile(const Forward& forward, size_t first_unit, int num_groups, uint8_t* scratch, Arena packed)
        : f(forward),
          groups(num_groups),
          halves(2 * num_groups),
          quads(forward.shape.width / 4),
          rank(RANK < 0 ? forward.rank : RANK),
          first(first_unit),
          noise_shift(4 + forward.shape.sigma_shift),
          arena{scratch},
          model(forward.shape, packed) {
        const Shape& s = f.shape;
        size_t h = size_t(halves), padded = size_t((s.width + 63) / 64 * 16);
        x = arena.take<Quad>(h * padded), gate = arena.take<Quad>(h * padded);
        y0 = arena.take<Quad>(h * max_quads(padded)), y1 = arena.take<Quad>(h * padded);
        state = arena.take<Quad>(size_t(s.layers) * h * padded);
        left = arena.take<Operand>(h * padded), right = arena.take<Operand>(h * padded);
        wide = arena.take<Operand>(h * 4 * padded);
        vectors = arena.take<Quad>(h * size_t(num_vectors(s)) * size_t(quads));
        perturbed = arena.take<int8_t>(size_t(s.width));
        text = arena.take<const uint8_t*>(h * W), total = arena.take<int32_t>(h * W);
        noise_offset = arena.take<size_t>(size_t(num_matrices(s)) + 1);
        noise_stride = 0;
        if (RANK) {
            embedding_b = arena.take<Quad>(size_t(groups * rank * quads));
            lay_out_noise();
            noise = arena.take<uint8_t>(noise_stride * size_t(groups));
        }
    }

    static size_t max_quads(size_t padded) { return padded > kVocabulary / 4 ? padded : kVocabulary / 4; }

    void lay_out_noise() {
        for (int m = 0; m < num_matrices(f.shape); ++m) {
            Matrix matrix = matrix_at(f.shape, m);
            if (arena.base) noise_offset[m] = noise_stride;
            noise_stride += size_t(rank) * (sizeof(I32) + size_t(matrix.in + matrix.out) * W);
            noise_stride = (noise_stride + 63) / 64 * 64;
        }
    }

    MatrixNoise noise_of(int group, int index) const {
        Matrix matrix = matrix_at(f.shape, index);
        uint8_t* at = noise + noise_stride * size_t(group) + noise_offset[index];
        Quad* b = (Quad*)(at + size_t(rank) * sizeof(I32));
        return {(I32*)at, b, (int8_t*)(b + size_t(rank * matrix.in / 4))};
    }

    // Member of a lane; the caller checks that it exists.
    size_t member(int half, int lane) const {
        if (!RANK) return first + size_t(half * W + lane);
        return 2 * (first + size_t(half / 2 * W + lane)) + size_t(half & 1);
    }
    size_t num_members() const { return RANK ? 2 * f.units : f.units; }
    bool exists(int half, int lane) const { return member(half, lane) < num_members(); }

    // ---- once a tile -------------------------------------------------------------------------------------

    const int8_t* factors_of(int group, int lane) const {
        size_t unit = first + size_t(group * W + lane);
        return unit < f.units ? f.factors + unit * f.factor_stride : nullptr;
    }

    // out[k][lane][4] = source of that lane; lanes without a member get zeros.
    void pack_quads(int group, size_t offset, int count, Quad* out) const {
        for (int lane = 0; lane < W; ++lane) {
            const int8_t* source = factors_of(group, lane);
            uint8_t* to = (uint8_t*)out + 4 * lane;
            if (source) scatter(source + offset, count, to);
            else
                for (int k = 0; k < count; ++k) memset(to + 4 * W * k, 0, 4);
        }
    }

    static ES_INLINE void scatter(const int8_t* __restrict from, int count, uint8_t* __restrict to) {
        for (int k = 0; k < count; ++k) memcpy(to + 4 * W * k, from + 4 * k, 4);
    }

    void pack_bytes(int group, size_t offset, int count, int8_t* out) const {
        for (int lane = 0; lane < W; ++lane) {
            const int8_t* source = factors_of(group, lane);
            for (int k = 0; k < count; ++k) out[k * W + lane] = source ? source[offset + size_t(k)] : int8_t{0};
        }
    }

    void pack_noise() {
        const size_t scale = size_t(rank);
        for (int g = 0; g < groups; ++g) {
            pack_quads(g, scale * kVocabulary, rank * quads, embedding_b + g * rank * quads);
            for (int m = 0; m < num_matrices(f.shape); ++m) {
                Matrix matrix = matrix_at(f.shape, m);
                MatrixNoise n = noise_of(g, m);
                pack_bytes(g, scale * matrix.factors, rank * matrix.out, n.a);
                pack_quads(g, scale * (matrix.factors + size_t(matrix.out)), rank * matrix.in / 4, n.b);
                for (int r = 0; r < rank; ++r)
                    n.start[r] = -I::kDotOffset * sum_of(n.b + r * matrix.in / 4, matrix.in / 4);
            }
        }
    }

    static I32 sum_of(const Quad* values, int count) {
        I32 sum = {};
        for (int k = 0; k < count; ++k) {
            I16 pair = I::even(values[k]) + I::odd(values[k]);
            sum += I::low(pair) + I::high(pair);
        }
        return sum;
    }

    // vectors[half][index][quad] = c(p + ((sign u v) >> S)), constant over the bytes.
    void perturb_vectors() {
        const int count = num_vectors(f.shape);
        for (int half = 0; half < halves; ++half)
            for (int v = 0; v < count; ++v)
                for (int lane = 0; lane < W; ++lane) {
                    const int16_t* products = nullptr;
                    if (RANK && exists(half, lane)) products = f.products + member(half, lane) / 2 * f.product_stride;
                    perturb(v, products, half & 1);
                    scatter(perturbed, quads, (uint8_t*)(vectors + (half * count + v) * quads) + 4 * lane);
                }
    }

    void perturb(int vector, const int16_t* products, bool negative) {
        const int width = f.shape.width, shift = noise_shift;
        const int8_t* values = model.vectors + vector * width;
        int8_t* __restrict to = perturbed;  // bytes alias everything, which would keep the loops from vectorising
        if (!products) {
            for (int j = 0; j < width; ++j) to[j] = values[j] < -127 ? int8_t{-127} : values[j];
            return;
        }
        products += vector * width;
        const int sign = negative ? -1 : 1;
        for (int j = 0; j < width; ++j) {
            const int value = values[j] + ((sign * products[j]) >> shift);
            to[j] = int8_t(value > 127 ? 127 : value < -127 ? -127 : value);
        }
    }

    void find_text() {
        for (int half = 0; half < halves; ++half)
            for (int lane = 0; lane < W; ++lane) {
                size_t m = exists(half, lane) ? member(half, lane) : member(0, 0);
                size_t row = f.row_of_pair ? size_t(f.row_of_pair[m / 2]) : m;
                text[half * W + lane] = f.rows + row * f.row_bytes;
                total[half * W + lane] = 0;
            }
    }

    Quad* state_of(int layer, int half) { return state + (layer * halves + half) * quads; }

    template <class Copy>
    void each_state(Copy copy) {
        size_t row = size_t(f.shape.width);
        for (int layer = 0; layer < f.shape.layers; ++layer)
            for (int half = 0; half < halves; ++half)
                for (int lane = 0; lane < W; ++lane) {
                    uint8_t* packed = (uint8_t*)state_of(layer, half) + 4 * lane;
                    int8_t* outside = nullptr;
                    if (f.state && exists(half, lane))
                        outside = f.state + (member(half, lane) * size_t(f.shape.layers) + size_t(layer)) * row;
                    for (int k = 0; k < quads; ++k) copy(packed + 4 * W * k, outside ? outside + 4 * k : nullptr);
                }
    }

    void load_state() {
        each_state([](uint8_t* packed, int8_t* outside) {
            if (outside) memcpy(packed, outside, 4);
            else memset(packed, 0, 4);
        });
    }
    void store_state() {
        each_state([](uint8_t* packed, int8_t* outside) {
            if (outside) memcpy(outside, packed, 4);
        });
    }

    // ---- once a byte -------------------------------------------------------------------------------------

    void reset_states(int half, int64_t step) {
        I32 keep;
        bool any = false;
        for (int lane = 0; lane < W; ++lane) {
            bool separator = text[half * W + lane][step] == 0;
            keep[lane] = separator ? 0 : -1;
            any |= separator;
        }
        if (!any) return;
        for (int layer = 0; layer < f.shape.layers; ++layer) {
            Quad* s = state_of(layer, half);
            for (int k = 0; k < quads; ++k) s[k] &= (Quad)keep;
        }
    }

    void embed(int half, int64_t step) {
        Quad* to = x + half * quads;
        for (int lane = 0; lane < W; ++lane) {
            const int8_t* row = model.embedding + size_t(text[half * W + lane][step]) * size_t(f.shape.width);
            for (int k = 0; k < quads; ++k) memcpy((uint8_t*)(to + k) + 4 * lane, row + 4 * k, 4);
        }
        I32 a[RANK < 0 ? 64 : 1];
        for (int r = 0; r < rank; ++r) {
            for (int lane = 0; lane < W; ++lane) {
                const int8_t* source = factors_of(half / 2, lane);
                int value = source ? source[size_t(r) * kVocabulary + text[half * W + lane][step]] : 0;
                a[r][lane] = half & 1 ? -value : value;
            }
        }
        const Quad* b = RANK ? embedding_b + half / 2 * rank * quads : nullptr;
        for (int k = 0; k < quads; ++k) {
            I32 part[4];
            for (int j = 0; j < 4; ++j) {
                I32 sum = {};
                for (int r = 0; r < rank; ++r) sum += a[r] * byte_of(b[r * quads + k], j);
                part[j] = byte_of(to[k], j) + (sum >> noise_shift);
            }
            to[k] = I::clip_quad(part[0], part[1], part[2], part[3]);
        }
    }

    static ES_INLINE I32 byte_of(Quad quad, int j) { return ((I32)quad << (24 - 8 * j)) >> 24; }

    // c((x w) div max(1, (sum |x|) div D)), as the operand of a matrix product.
    void layer_norm(int half, int vector, Operand* to) {
        const Quad *from = x + half * quads, *w = vectors + (half * num_vectors(f.shape) + vector) * quads;
        I16 evens = {}, odds = {};  // at most 256 * 127 each
        for (int k = 0; k < quads; ++k) {
            I16 even = I::even(from[k]), odd = I::odd(from[k]);
            evens += I::greatest(even, -even), odds += I::greatest(odd, -odd);
        }
        I32 sum = I::low(evens) + I::high(evens) + I::low(odds) + I::high(odds);
        I32 mean = I::floor((I::to_float(sum) + 0.5f) * (1.0f / float(f.shape.width)));
        const auto by = I::quotient_by(I::greatest(mean, I::broadcast(1)));
        for (int k = 0; k < quads; ++k) to[k] = I::operand(I::norm_quad(from[k], w[k], by));
    }

    // y[half][out / 4] = c(acc div (16 isqrt(in))), acc = W x + ((sum_r (x . B_r) (sign A_r)) >> S).
    // With OPERAND, y is what the next product takes (an Operand may be a Quad with other contents).
    template <bool OPERAND, class Out>
    void matmul(int index, const uint8_t* panel, const Operand* in, Out* y) {
        const Divisor divisor = divisor_for(matrix_at(f.shape, index).in);
        if (divisor.power) multiply<true, OPERAND>(index, divisor, panel, in, y);
        else multiply<false, OPERAND>(index, divisor, panel, in, y);
    }

    static constexpr int kMaxHalves = 16, kMaxRank = 64;

    struct GroupNoise {
        const int8_t* a;                       // [rank][out][W]
        I32 dots[RANK < 0 ? kMaxRank : 1][2];  // x . B_r of the even, and - x . B_r of the odd members
    };

    // What the blocks of one product have in common.
    template <class Out>
    struct Product {
        Matrix matrix;
        Divisor divisor;
        Out* y;
        GroupNoise noises[kMaxHalves / 2];
    };

    template <bool SHIFTS, bool OPERAND, class Out>
    void multiply(int index, const Divisor& divisor, const uint8_t* panel, const Operand* in, Out* y) {
        Product<Out> p;  // the noise of many ranks is large: it is not cleared
        p.matrix = matrix_at(f.shape, index), p.divisor = divisor, p.y = y;
        const size_t bytes = I::panel_bytes(p.matrix.in);
        const int in_quads = p.matrix.in / 4;
        if (RANK)
            for (int g = 0; g < groups; ++g)
                p.noises[g] = dot_noise(noise_of(g, index), p.matrix.in, in + 2 * g * in_quads);
        if constexpr (I::kPipelined) {
            I32 acc[2][I::kRows][2];
            int turn = 0, last_row = 0, last_group = -1;
            for (int row = 0; row < p.matrix.out; row += I::kRows, panel += bytes)
                for (int g = 0; g < groups; ++g, turn ^= 1) {
                    const Operand* x0 = in + 2 * g * in_quads;
                    prefetch(panel + bytes, bytes, g);
                    // While the tiles of this block multiply, the vector units finish the block before it.
                    I::gemm(panel, x0, x0 + in_quads, p.matrix.in, acc[turn], [&](int part, int parts) {
                        const int first = part * kQuads / parts, end = (part + 1) * kQuads / parts;
                        if (last_group >= 0)
                            finish<SHIFTS, OPERAND>(p, acc[turn ^ 1], last_row, last_group, first, end);
                    });
                    last_row = row, last_group = g;
                }
            finish<SHIFTS, OPERAND>(p, acc[turn ^ 1], last_row, last_group, 0, kQuads);
        } else {
            for (int row = 0; row < p.matrix.out; row += I::kRows, panel += bytes)
                for (int g = 0; g < groups; ++g) {
                    I32 acc[I::kRows][2];
                    const Operand* x0 = in + 2 * g * in_quads;
                    I::gemm(panel, x0, x0 + in_quads, p.matrix.in, acc);
                    finish<SHIFTS, OPERAND>(p, acc, row, g, 0, kQuads);
                }
        }
    }

    static constexpr int kQuads = I::kRows / 4;  // of a block, in each half

    // From accumulators to outputs: quads first .. end - 1 of the block of a group that begins at output `row`.
    template <bool SHIFTS, bool OPERAND, class Out>
    ES_INLINE void finish(const Product<Out>& p, I32 (*acc)[2], int row, int g, int first, int end) const {
        const int out_quads = p.matrix.out / 4;
        Out* to = p.y + 2 * g * out_quads + row / 4;
        // Outputs come in multiples of 16, so only wider blocks can be cut short.
        if (I::kRows > 16) end = row / 4 + end < out_quads ? end : out_quads - row / 4;
#pragma GCC unroll 4
        for (int q = first; q < end; ++q) {
            if (RANK) add_noise(acc + 4 * q, p.noises[g], row + 4 * q, p.matrix.out);
            for (int half = 0; half < 2; ++half) {
                const Quad quad = quotient<SHIFTS>(acc + 4 * q, half, p.divisor);
                if constexpr (OPERAND) to[q + half * out_quads] = I::operand(quad);
                else to[q + half * out_quads] = quad;
            }
        }
    }

    // The panels outgrow the second-level cache: while a group runs, its share of the next panel comes closer.
    ES_INLINE void prefetch(const uint8_t* next, size_t bytes, int group) const {
        const size_t share = bytes / size_t(groups);
        for (size_t at = 0; at < share; at += 64) __builtin_prefetch(next + size_t(group) * share + at, 0, 2);
    }

    template <bool SHIFTS>
    static ES_INLINE Quad quotient(const I32 (*acc)[2], int half, const Divisor& divisor) {
        const I32 a = acc[0][half], b = acc[1][half], c = acc[2][half], d = acc[3][half];
        if (!SHIFTS) return I::divide_quad(a, b, c, d, divisor);
        return I::clip_quad(a >> divisor.power, b >> divisor.power, c >> divisor.power, d >> divisor.power);
    }

    ES_INLINE GroupNoise dot_noise(const MatrixNoise& n, int in, const Operand* x0) const {
        GroupNoise result;
        result.a = n.a;
        const int in_quads = in / 4;
        const Operand* x1 = x0 + in_quads;
        for (int r = 0; r < rank; ++r) {
            const Quad* b = n.b + r * in_quads;
            I32 even[2] = {n.start[r]}, odd[2] = {n.start[r]};  // two chains each hide the latency
            for (int k = 0; k < in_quads; k += 2)
                for (int j = 0; j < 2; ++j) {
                    even[j] = I::dot(even[j], x0[k + j], b[k + j]);
                    odd[j] = I::dot(odd[j], x1[k + j], b[k + j]);
                }
            result.dots[r][0] = even[0] + even[1], result.dots[r][1] = -(odd[0] + odd[1]);
        }
        return result;
    }

    // Adds (sum_r dot_r A_r[o]) >> S to four outputs from `row` on.
    ES_INLINE void add_noise(I32 (*acc)[2], const GroupNoise& n, int row, int out) const {
        for (int i = 0; i < 4; ++i) {
            I32 even = {}, odd = {};
            for (int r = 0; r < rank; ++r) {
                const I32 factor = I::widen(n.a + (r * out + row + i) * W);
                even += n.dots[r][0] * factor, odd += n.dots[r][1] * factor;
            }
            acc[i][0] += even >> noise_shift;
            acc[i][1] += odd >> noise_shift;
        }
    }

    // c(a + b + c) of int8 terms.
    static ES_INLINE I16 total3_even(Quad a, Quad b, Quad c) { return I::clip(I::even(a) + I::even(b) + I::even(c)); }
    static ES_INLINE I16 total3_odd(Quad a, Quad b, Quad c) { return I::clip(I::odd(a) + I::odd(b) + I::odd(c)); }

    // f = c(Wf u + Uf s + bf), kept in `gate`; p = ((f + 127) s) >> 8 becomes the operand of Uh.
    void gate_state(int half, int layer) {
        const Quad *s = state_of(layer, half), *bias = vector_of(half, layer, kBf);
        const Quad *wu = y0 + half * quads, *us = y1 + half * quads;
        Quad* forget = gate + half * quads;
        Operand* to = right + half * quads;
        for (int k = 0; k < quads; ++k) {
            I16 even = total3_even(wu[k], us[k], bias[k]), odd = total3_odd(wu[k], us[k], bias[k]);
            forget[k] = I::join(even, odd);
            to[k] = I::operand(I::join(((even + 127) * I::even(s[k])) >> 8, ((odd + 127) * I::odd(s[k])) >> 8));
        }
    }

    // (f + 127) (k - s) has 17 bits: (f + 127) << 7 times (k - s) << 1, high half, is the product >> 8.
    static ES_INLINE I16 moved(I16 s, I16 forget, I16 candidate) {
        return s + I::multiply_high((forget + 127) << 7, (candidate - s) << 1);
    }

    // k = c(Wh u + Uh p + bh); s += ((f + 127) (k - s)) >> 8; x = c(x + s).
    void update_state(int half, int layer) {
        Quad *s = state_of(layer, half), *to = x + half * quads;
        const Quad *bias = vector_of(half, layer, kBh), *forget = gate + half * quads;
        const Quad *wu = y0 + half * quads, *up = y1 + half * quads;
        for (int k = 0; k < quads; ++k) {
            I16 even = moved(I::even(s[k]), I::even(forget[k]), total3_even(wu[k], up[k], bias[k]));
            I16 odd = moved(I::odd(s[k]), I::odd(forget[k]), total3_odd(wu[k], up[k], bias[k]));
            s[k] = I::join(even, odd);
            to[k] = I::join(I::clip(I::even(to[k]) + even), I::clip(I::odd(to[k]) + odd));
        }
    }

    const Quad* vector_of(int half, int layer, int which) const {
        return vectors + (half * num_vectors(f.shape) + kVectorsPerLayer * layer + which) * quads;
    }

    void add_residual(int half) {
        Quad* to = x + half * quads;
        const Quad* y = y0 + half * quads;
        for (int k = 0; k < quads; ++k)
            to[k] = I::join(I::clip(I::even(to[k]) + I::even(y[k])), I::clip(I::odd(to[k]) + I::odd(y[k])));
    }

    const uint8_t* next_panel(const uint8_t*& panel, int index) const {
        const uint8_t* current = panel;
        panel += Model<I>::matrix_bytes(matrix_at(f.shape, index));
        return current;
    }

    void run_layer(int layer, const uint8_t*& panel) {
        const int m = kMatricesPerLayer * layer;
        for (int half = 0; half < halves; ++half) {
            layer_norm(half, kVectorsPerLayer * layer + kLn1, left + half * quads);
            const Quad* s = state_of(layer, half);
            for (int k = 0; k < quads; ++k) right[half * quads + k] = I::operand(s[k]);
        }
        matmul<false>(m + kWf, next_panel(panel, m + kWf), left, y0);
        matmul<false>(m + kUf, next_panel(panel, m + kUf), right, y1);
        for (int half = 0; half < halves; ++half) gate_state(half, layer);
        matmul<false>(m + kWh, next_panel(panel, m + kWh), left, y0);
        matmul<false>(m + kUh, next_panel(panel, m + kUh), right, y1);
        for (int half = 0; half < halves; ++half) {
            update_state(half, layer);
            layer_norm(half, kVectorsPerLayer * layer + kLn2, left + half * quads);
        }
        matmul<true>(m + kMlp0, next_panel(panel, m + kMlp0), left, wide);
        matmul<false>(m + kMlp1, next_panel(panel, m + kMlp1), wide, y0);
        for (int half = 0; half < halves; ++half) add_residual(half);
    }

    // The logits of byte `step` are left in y0, 64 quads a half.
    void run_byte(int64_t step) {
        for (int half = 0; half < halves; ++half) {
            reset_states(half, step);
            embed(half, step);
        }
        const uint8_t* panel = model.panels;
        for (int layer = 0; layer < f.shape.layers; ++layer) run_layer(layer, panel);
        for (int half = 0; half < halves; ++half)
            layer_norm(half, kVectorsPerLayer * f.shape.layers, left + half * quads);
        matmul<false>(kMatricesPerLayer * f.shape.layers, panel, left, y0);
    }

    static int8_t logit(const Quad* logits, int lane, int byte) {
        return ((const int8_t*)(logits + byte / 4))[4 * lane + byte % 4];
    }

    void score_byte(int half, int64_t step) {
        const Quad* logits = y0 + half * kVocabulary / 4;
        I32 sum = {};
        for (int k = 0; k < kVocabulary / 4; ++k)
            for (int j = 0; j < 4; ++j) sum += I::exp2(kExp2Mantissa, byte_of(logits[k], j) + 128);
        for (int lane = 0; lane < W; ++lane) {
            uint8_t target = text[half * W + lane][step + 1];
            total[half * W + lane] += logit(logits, lane, target) + 128 - log_sum_exp(uint32_t(sum[lane]));
        }
    }

    template <class Use>
    void each_member(Use use) {
        for (int half = 0; half < halves; ++half)
            for (int lane = 0; lane < W; ++lane)
                if (exists(half, lane)) use(half, lane, member(half, lane));
    }

    void run() {
        I::enter();
        find_text();
        load_state();
        if (RANK) pack_noise();
        perturb_vectors();
        for (int64_t step = 0; step < f.steps; ++step) {
            run_byte(step);
            if (f.scores && step >= f.burn_in)
                for (int half = 0; half < halves; ++half) score_byte(half, step);
        }
        I::leave();
        store_state();
        each_member([this](int half, int lane, size_t m) {
            if (f.scores) f.scores[m] = total[half * W + lane];
            if (!f.logits) return;
            for (int v = 0; v < kVocabulary; ++v)
                f.logits[m * kVocabulary + size_t(v)] = logit(y0 + half * kVocabulary / 4, lane, v);
        });
    }
};

template <class I>
size_t tile_bytes(const Shape& shape, int rank, int groups) {
    Forward forward{};
    forward.shape = shape, forward.rank = rank;
    return rank ? Tile<I, -1>(forward, 0, groups, nullptr, {nullptr}).arena.used
                : Tile<I, 0>(forward, 0, groups, nullptr, {nullptr}).arena.used;
}

template <class I>
void forward_tile(const Forward& forward, size_t first, int groups, uint8_t* scratch) {
    Arena packed{(uint8_t*)forward.model};
    if (!forward.factors) Tile<I, 0>(forward, first, groups, scratch, packed).run();
    else if (forward.rank == 1) Tile<I, 1>(forward, first, groups, scratch, packed).run();
    else Tile<I, -1>(forward, first, groups, scratch, packed).run();
}

}  // namespace
}  // namespace es
