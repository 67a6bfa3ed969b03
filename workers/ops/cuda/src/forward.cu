// EGG over a lease: one launch runs all bytes of all its members (specs/egg.md). Arithmetic: workers/ops/reference.py.
//
// A block owns a tile of kRows members and keeps their activations in shared memory; the states, which are used once
// a byte, stay in global memory. A warp makes 16 MT members x 32 outputs of a product: the members' operands come by
// ldmatrix, the weights straight from L2 in operand order (egg_pack), each read once a row of warps and byte, with
// no barrier inside a product. The low-rank term, floor shift, division, clip, gates and residual happen in the
// registers of the accumulators. Between products, row phases give each warp whole members: LayerNorm, the dot
// products x . B_r, the score. Blocks are persistent: grid.x <= tiles, a block takes every gridDim.x-th tile.

struct Lease {
    const i8* embedding;  // (256, D), the start of the parameters
    const u8* packed;     // egg_pack
    const i8* vectors;    // egg_vectors
    const i8* factors;    // (pairs, factor_stride); not read if rank = 0
    const u8* rows;       // (rows, row_bytes)
    const i32* row_of_pair;  // (pairs,), or null: member m reads row m
    i8* state;            // (members, L, D), read and overwritten
    i32* scores;          // (members,), written, or null
    i8* logits;           // (members, 256) of the last byte, written, or null
    Shape shape;
    i32 members, noise_shift, row_bytes, steps, burn_in, root_width, root_hidden;
};

// acc div (16 isqrt(in)), then c. A power of two is a shift; otherwise, within the range that c keeps, the floor of
// (v + 1/2) / d by a multiplication: its error, 2^-14, is below the 1 / (2 d) that would be needed to cross.
struct Divisor {
    i32 shift, multiplier, low, high;
    ES_DEVICE explicit Divisor(i32 root) {
        const i32 divisor = 16 * root;
        shift = 31 - __clz(divisor);
        multiplier = (divisor & (divisor - 1)) == 0 ? 0 : ((1 << 30) + divisor / 2) / divisor;
        low = -127 * divisor, high = 128 * divisor - 1;
    }
    ES_DEVICE uint2 divide(i32 (&v)[8]) const {
        if (multiplier == 0) {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] >>= shift;
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = __mulhi(4 * max(low, min(high, v[j])) + 2, multiplier);
        }
        return {clip4(v[0], v[1], v[2], v[3]), clip4(v[4], v[5], v[6], v[7])};
    }
};

// trunc(16 2^(i/16)) = kMantissa[i mod 16] >> (15 - i div 16): a floor of a floor is the floor.
__constant__ i32 kMantissa[16] = {524288, 547500, 571740, 597053, 623487, 651091, 679917, 710019,
                                  741455, 774282, 808562, 844360, 881743, 920781, 961548, 1004119};
// Least s in [2^27, 2^28) with 16 log2(s / 2^27) >= j + 1, j = 0 .. 14; the last is never reached.
__constant__ u32 kLogSteps[16] = {140160055, 146365471, 152845624, 159612678, 166679335, 174058859, 181765103, 189812532,
                                  198216250, 206992034, 216156354, 225726413, 235720175, 246156399, 257054674, 0xFFFFFFFFu};

// Shared memory of a tile, in bytes for one member except where said. _launch.py mirrors `bytes`; Tile checks it.
struct Plan {
    i32 plain_stride, operand_stride, wide_stride, area;
    ES_DEVICE explicit Plan(i32 width) {
        const i32 padded = pad(width, 32);
        plain_stride = padded + 32;    // conflict-free for the accumulators' 8-byte rows
        operand_stride = padded + 16;  // an odd number of 16 bytes: conflict-free for ldmatrix
        wide_stride = pad(4 * width, 32) + 16;
        area = max(max(2 * operand_stride + 2 * plain_stride, wide_stride), kVocabulary + 16);
    }
    ES_DEVICE i32 bytes(i32 rows, i32 rank) const {
        return rows * (plain_stride + operand_stride + area + 12 * rank + 12) + 128;
    }
};

// What a product reads and where its results go; chosen at run time, so that its code exists once.
struct Product {
    Matrix matrix;
    const i8* operand;
    i8* result;
    i32 operand_stride, result_stride;
    const i32* dots;
};

template <int MT, int WM, int WN>
struct Tile {
    static constexpr int kRows = 16 * MT * WM, kWarps = WM * WN, kThreads = 32 * kWarps;
    static constexpr int kPairs = (kRows / 2 + kWarps - 1) / kWarps;  // of one warp in a row phase

    const Lease& f;
    const Plan plan;
    const Divisor divisor, divisor_hidden;
    const i32 factor_stride, vector_stride;
    i32 first;  // member of row 0
    i8 *x, *u;                                  // residual stream; LayerNorm's output (an operand) or a result
    i8 *state, *passed, *gate, *term, *hidden;  // hidden, and the logits, share the space of the four before
    i32* dots;                                  // [3][kRows][rank], the member's sign included
    i32 *total, *token, *text, *mantissa;       // [kRows] each, [16]
    u32* log_steps;                             // [16]

    ES_DEVICE Tile(const Lease& lease, u8* shared)
        : f(lease), plan(lease.shape.width), divisor(lease.root_width), divisor_hidden(lease.root_hidden),
          factor_stride(lease.shape.rank * (2 * kVocabulary + (2 + 18 * lease.shape.layers) * lease.shape.width)),
          vector_stride(lease.shape.rank ? (4 * lease.shape.layers + 1) * lease.shape.width : 0), first(0) {
        x = (i8*)shared;
        u = x + kRows * plan.plain_stride;
        hidden = u + kRows * plan.operand_stride;
        state = hidden, passed = state + kRows * plan.operand_stride;
        gate = passed + kRows * plan.operand_stride, term = gate + kRows * plan.plain_stride;
        dots = (i32*)(hidden + kRows * plan.area);
        total = dots + 3 * kRows * f.shape.rank, token = total + kRows, text = token + kRows;
        mantissa = text + kRows, log_steps = (u32*)(mantissa + 16);
        check_shared((const u8*)(log_steps + 16) - shared, plan.bytes(kRows, f.shape.rank));
        for (u32 i = threadIdx.x; i < 16; i += kThreads) mantissa[i] = kMantissa[i], log_steps[i] = kLogSteps[i];
    }

    ES_DEVICE int lane() const { return threadIdx.x & 31; }
    ES_DEVICE int warp() const { return threadIdx.x >> 5; }
    ES_DEVICE bool exists(int row) const { return first + row < f.members; }
    // Rows behind the last member repeat it, unseen.
    ES_DEVICE i32 member(int row) const { return min(first + row, f.members - 1); }
    ES_DEVICE const i8* factors(int row) const { return f.factors + (i64)(member(row) / 2) * factor_stride; }
    ES_DEVICE const i8* vector(int row, i32 index) const {
        return f.vectors + ((i64)member(row) * vector_stride + index * f.shape.width);
    }
    ES_DEVICE i8* outside_state(int row, i32 layer) const {
        return f.state + ((i64)member(row) * f.shape.layers + layer) * f.shape.width;
    }

    // ---- row phases: a warp takes pairs warp, warp + kWarps, .. ----------------------------------------------

    template <class Use>
    ES_DEVICE void each_pair(Use use) const {
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
            if (const int pair = warp() + i * kWarps; kRows / 2 % kWarps == 0 || pair < kRows / 2) use(i, 2 * pair);
    }
    template <class Use>
    ES_DEVICE void each_row(Use use) const {
#pragma unroll 1
        for (int pair = warp(); pair < kRows / 2; pair += kWarps)
#pragma unroll 1
            for (int row = 2 * pair; row < 2 * pair + 2; ++row) use(row);
    }

    ES_DEVICE void begin() {
        each_row([&](int row) {
            if (lane()) return;
            const i32 m = member(row);
            text[row] = f.row_of_pair ? f.row_of_pair[m / 2] : m;
            total[row] = 0;
        });
        __syncwarp();
    }

    // x = c(E[k] + ((sum_r sign A_r[k] B_r) >> S)).
    ES_DEVICE void embed(i32 step) {
        const i32 width = f.shape.width, rank = f.shape.rank;
        each_row([&](int row) {
            const i32 k = f.rows[(i64)text[row] * f.row_bytes + step];
            if (lane() == 0) token[row] = k;
            for (i32 at = 4 * lane(); at < width; at += 128) {
                const u32 word = *(const u32*)(f.embedding + k * width + at);
                i32 sum[4] = {};
                for (i32 r = 0; r < rank; ++r) {
                    const i8* a = factors(row);
                    const i32 factor = row & 1 ? -a[r * kVocabulary + k] : a[r * kVocabulary + k];
                    const u32 b = load_noise4(a + rank * kVocabulary + r * width + at);
                    for (int j = 0; j < 4; ++j) sum[j] += factor * byte_of(b, j);
                }
                for (int j = 0; j < 4; ++j) sum[j] = byte_of(word, j) + (sum[j] >> f.noise_shift);
                *(u32*)(x + row * plan.plain_stride + at) = clip4(sum[0], sum[1], sum[2], sum[3]);
            }
        });
        __syncwarp();
    }

    // The operand of Uf; a separator (byte 0) starts from zero.
    ES_DEVICE void load_state(i32 layer) {
        each_row([&](int row) {
            const i8* from = outside_state(row, layer);
            for (i32 at = 4 * lane(); at < f.shape.width; at += 128)
                *(u32*)(state + row * plan.operand_stride + at) = token[row] ? *(const u32*)(from + at) : 0;
        });
    }

    // u = c((x w) div max(1, (sum |x|) div D)).
    ES_DEVICE void normalise(i32 index) {
        const i32 width = f.shape.width;
        each_row([&](int row) {
            const i8 *from = x + row * plan.plain_stride, *w = vector(row, index);
            i32 sum = 0;
            for (i32 at = 4 * lane(); at < width; at += 128) {
                const u32 word = *(const u32*)(from + at), negative = word >> 7 & 0x01010101u;
                sum = __dp4a((i32)((word ^ negative * 255) + negative), 0x01010101, sum);  // |x| of four bytes
            }
            const i32 mean = max(1, warp_sum(sum) / width), reciprocal = ((1 << 30) + mean / 2) / mean;
            for (i32 at = 4 * lane(); at < width; at += 128) {
                const u32 a = *(const u32*)(from + at), b = load_noise4(w + at);
                i32 y[4];  // the floor of (v + 1/2) / mean, |v| < 2^14: as in Divisor
                for (int j = 0; j < 4; ++j) y[j] = __mulhi(4 * byte_of(a, j) * byte_of(b, j) + 2, reciprocal);
                *(u32*)(u + row * plan.operand_stride + at) = clip4(y[0], y[1], y[2], y[3]);
            }
        });
        __syncwarp();
    }

    // dots[row][r] = sign (operand . B_r). All pairs of the warp at once: their loads overlap.
    ES_DEVICE void dot(const Product& p) {
        const i32 rank = f.shape.rank;
        for (i32 r = 0; r < rank; ++r) {
            const i32 offset = p.matrix.factors + rank * p.matrix.out + r * p.matrix.in;
            i32 even[kPairs] = {}, odd[kPairs] = {};
            for (i32 at = 4 * lane(); at < p.matrix.in; at += 128) {
                u32 b[kPairs];
                each_pair([&](int i, int row) { b[i] = load_noise4(factors(row) + offset + at); });
                each_pair([&](int i, int row) {
                    const i8* from = p.operand + row * p.operand_stride + at;
                    even[i] = __dp4a(*(const i32*)from, (i32)b[i], even[i]);
                    odd[i] = __dp4a(*(const i32*)(from + p.operand_stride), (i32)b[i], odd[i]);
                });
            }
            each_pair([&](int i, int row) {
                const i32 plus = warp_sum(even[i]), minus = -warp_sum(odd[i]);
                if (lane() < 2) ((i32*)p.dots)[(row + lane()) * rank + r] = lane() ? minus : plus;
            });
        }
    }

    // ---- products: a warp takes 16 MT members and every WN-th group of 32 outputs -----------------------------

    ES_DEVICE void product(const Product& p, i32 layer, i32 which) {
        const i32 steps = (p.matrix.in + 31) / 32, row0 = warp() / WN * 16 * MT;
#pragma unroll 1
        for (i32 group = warp() % WN; group < (p.matrix.out + 31) / 32; group += WN) {
            i32 acc[MT][4][4] = {};
            const uint4* weights = (const uint4*)(f.packed + p.matrix.packed) + group * steps * 64 + lane();
            const i8* from = p.operand + (row0 + (lane() & 15)) * p.operand_stride + (lane() >> 4) * 16;
            uint4 next0 = __ldg(weights), next1 = __ldg(weights + 32);
#pragma unroll 1
            for (i32 step = steps; step > 0; --step, from += 32) {
                const uint4 b0 = next0, b1 = next1;
                if (step > 1) weights += 64, next0 = __ldg(weights), next1 = __ldg(weights + 32);
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    u32 a[4];
                    load_matrix(a, from + 16 * i * p.operand_stride);
                    mma_s8(acc[i][0], a, b0.x, b0.y), mma_s8(acc[i][1], a, b0.z, b0.w);
                    mma_s8(acc[i][2], a, b1.x, b1.y), mma_s8(acc[i][3], a, b1.z, b1.w);
                }
            }
            const i32 row = row0 + (lane() >> 2), out = 32 * group + 8 * (lane() & 3);
            if (out < p.matrix.out) {
                finish(p, acc, row, out, which == kMlp1 ? divisor_hidden : divisor);
                fuse(row, out, layer, which);
            }
        }
    }

    // result = c((acc + ((sum_r (x . B_r) (sign A_r)) >> S)) div (16 isqrt(in))), rows row, row + 8, ..
    ES_DEVICE void finish(const Product& p, i32 (&acc)[MT][4][4], i32 row0, i32 out, const Divisor& by) {
        const i32 rank = f.shape.rank;
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
            const i32 row = row0 + 8 * i;
            i32 v[8];
            u32 sum[8] = {};  // unsigned: modulo 2^32
#pragma unroll 1
            for (i32 r = 0; r < rank; ++r) {
                const uint2 a = load_noise8(factors(row) + p.matrix.factors + r * p.matrix.out + out);
                const u32 factor = (u32)p.dots[row * rank + r];
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[j] += factor * (u32)byte_of(a, j);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = acc[i / 2][j / 2][i % 2 * 2 + j % 2] + ((i32)sum[j] >> f.noise_shift);
            *(uint2*)(p.result + row * p.result_stride + out) = by.divide(v);
        }
    }

    // The elementwise arithmetic behind a product, on the results that this lane has just stored.
    ES_DEVICE void fuse(i32 row0, i32 out, i32 layer, i32 which) {
        if (which != kUf && which != kUh && which != kMlp1) return;
#pragma unroll 1
        for (int row = row0; row < row0 + 16 * MT; row += 8) {
            if (which == kUf) gate_state(row, out, 4 * layer + kBf);
            else if (which == kUh) update_state(row, out, layer);
            else add_residual(row, out, *(const uint2*)(u + row * plan.operand_stride + out));
        }
    }

    // f = c(Wf u + Uf s + bf); p = ((f + 127) s) >> 8.
    ES_DEVICE void gate_state(i32 row, i32 out, i32 bias) {
        uint2* at = (uint2*)(gate + row * plan.plain_stride + out);
        const uint2 w = *(const uint2*)(term + row * plan.plain_stride + out), b = load_noise8(vector(row, bias) + out), y = *at;
        const uint2 s = *(const uint2*)(state + row * plan.operand_stride + out);
        i32 forget[8], p[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            forget[j] = max(-127, min(127, byte_of(w, j) + byte_of(y, j) + byte_of(b, j)));
            p[j] = ((forget[j] + 127) * byte_of(s, j)) >> 8;
        }
        *at = pack8(forget);
        *(uint2*)(passed + row * plan.operand_stride + out) = pack8(p);
    }

    // k = c(Wh u + Uh p + bh); s += ((f + 127) (k - s)) >> 8; x = c(x + s).
    ES_DEVICE void update_state(i32 row, i32 out, i32 layer) {
        const uint2 b = load_noise8(vector(row, 4 * layer + kBh) + out);
        const uint2 w = *(const uint2*)(term + row * plan.plain_stride + out);
        const uint2 y = *(const uint2*)(u + row * plan.operand_stride + out);
        const uint2 forget = *(const uint2*)(gate + row * plan.plain_stride + out);
        const uint2 s = *(const uint2*)(state + row * plan.operand_stride + out);
        i32 next[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const i32 candidate = max(-127, min(127, byte_of(w, j) + byte_of(y, j) + byte_of(b, j))), old = byte_of(s, j);
            next[j] = old + (((byte_of(forget, j) + 127) * (candidate - old)) >> 8);
        }
        const uint2 packed = pack8(next);
        if (exists(row)) *(uint2*)(outside_state(row, layer) + out) = packed;
        add_residual(row, out, packed);
    }

    ES_DEVICE void add_residual(i32 row, i32 out, uint2 y) {
        uint2* residual = (uint2*)(x + row * plan.plain_stride + out);
        const uint2 before = *residual;
        i32 sum[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] = byte_of(before, j) + byte_of(y, j);
        *residual = pack8(sum);
    }

    ES_DEVICE static uint2 pack8(i32 (&v)[8]) { return {clip4(v[0], v[1], v[2], v[3]), clip4(v[4], v[5], v[6], v[7])}; }

    // ---- one byte --------------------------------------------------------------------------------------------

    ES_DEVICE Product product_of(i32 layer, i32 which) const {
        Product p = {matrix_of(f.shape, layer, which), u, term, plan.operand_stride, plan.plain_stride, dots};
        if (which == kUf) p.operand = state, p.result = gate, p.dots += kRows * f.shape.rank;
        if (which == kWh) p.dots += 2 * kRows * f.shape.rank;
        if (which == kUh) p.operand = passed, p.result = u, p.result_stride = plan.operand_stride;
        if (which == kMlp0) p.result = hidden, p.result_stride = plan.wide_stride;
        if (which == kMlp1)
            p.operand = hidden, p.operand_stride = plan.wide_stride, p.result = u, p.result_stride = plan.operand_stride;
        if (which == kHead) p.result = hidden, p.result_stride = kVocabulary + 16;
        return p;
    }

    // Row phases in front of a product. Those of Uf and Wh are done with Wf's: three products without a barrier.
    ES_DEVICE void before(i32 layer, i32 which) {
        if (which == kWf) load_state(layer);
        if (which == kWf || which == kMlp0 || which == kHead) normalise(4 * layer + (which == kMlp0 ? kLn2 : kLn1));
#pragma unroll 1
        for (i32 next = which; next <= (which == kWf ? kWh : which); ++next) dot(product_of(layer, next));
    }

    ES_DEVICE void run_byte(i32 step) {
        embed(step);
#pragma unroll 1
        for (i32 at = 0; at <= 6 * f.shape.layers; ++at) {
            const i32 layer = at / 6, which = at == 6 * f.shape.layers ? kHead : at % 6;
            if (which != kUf && which != kWh) {
                before(layer, which);
                __syncthreads();
            }
            product(product_of(layer, which), layer, which);
            if (which != kWf && which != kUf) __syncthreads();
        }
    }

    // total += z[target] - trunc(16 log2(sum_j X[z_j] / 16)), z = logits + 128.
    ES_DEVICE void score(i32 step) {
        each_row([&](int row) {
            const i8* logits = hidden + row * (kVocabulary + 16);
            const uint2 eight = *(const uint2*)(logits + 8 * lane());
            i32 sum = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const i32 z = byte_of(eight, j) + 128;
                sum += mantissa[z & 15] >> (15 - (z >> 4));
            }
            sum = warp_sum(sum);
            const int exponent = 31 - __clz(sum);
            const bool reached = (u32)sum << (27 - exponent) >= log_steps[lane() & 15];
            const i32 log = 16 * (exponent - 4) + __popc(__ballot_sync(FULL_WARP, reached) & 0xFFFF);
            const i32 target = f.rows[(i64)text[row] * f.row_bytes + step + 1];
            if (lane() == 0) total[row] += logits[target] + 128 - log;
        });
    }

    ES_DEVICE void store_logits() {
        each_row([&](int row) {
            if (exists(row))
                *(uint2*)(f.logits + (i64)member(row) * kVocabulary + 8 * lane()) =
                    *(const uint2*)(hidden + row * (kVocabulary + 16) + 8 * lane());
        });
    }

    ES_DEVICE void run(i32 tile) {
        first = tile * kRows;
        begin();
#pragma unroll 1
        for (i32 step = 0; step < f.steps; ++step) {
            run_byte(step);
            if (f.scores && step >= f.burn_in) score(step);
            if (f.logits && step + 1 == f.steps) store_logits();
            __syncthreads();  // the logits' space is the next byte's state
        }
        each_row([&](int row) {
            if (f.scores && exists(row) && lane() == 0) f.scores[member(row)] = total[row];
        });
    }
};

template <class Tile>
ES_DEVICE void forward(const Lease& lease) {
    ES_SHARED(shared);
    Tile tile(lease, shared);
    for (i32 index = blockIdx.x; index * Tile::kRows < lease.members; index += gridDim.x) {
        __syncthreads();
        tile.run(index);
    }
}

#define ES_LEASE_PARAMETERS                                                                                             \
    const i8 *__restrict__ embedding, const u8 *__restrict__ packed, const i8 *__restrict__ vectors,                    \
    const i8 *__restrict__ factors, const u8 *__restrict__ rows, const i32 *__restrict__ row_of_pair, i8 *state,        \
    i32 *scores, i8 *logits, i32 width, i32 layers, i32 rank, i32 members, i32 noise_shift, i32 row_bytes, i32 steps,   \
    i32 burn_in, i32 root_width, i32 root_hidden
#define ES_LEASE                                                                                                        \
    {embedding, packed, vectors, factors, rows, row_of_pair, state, scores, logits, {width, layers, rank}, members,     \
     noise_shift, row_bytes, steps, burn_in, root_width, root_hidden}

// The name's number is kRows; launch.py takes the tile that fills the device and fits its shared memory.
ES_KERNEL __launch_bounds__(512, 1) egg_forward_16(ES_LEASE_PARAMETERS) { forward<Tile<1, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_32(ES_LEASE_PARAMETERS) { forward<Tile<2, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_64(ES_LEASE_PARAMETERS) { forward<Tile<4, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_128(ES_LEASE_PARAMETERS) { forward<Tile<4, 2, 8>>(ES_LEASE); }
