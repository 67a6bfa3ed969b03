// EGG over a lease: one launch runs all bytes of all its members (specs/egg.md). Arithmetic: workers/ops/reference.py.
//
// A block owns a tile of kRows members and keeps their activations in shared memory; the states, which are used once
// a byte, stay in global memory. A warp makes 16 MT members x 32 outputs of a product: the members' operands come by
// ldmatrix, the weights straight from L2 in operand order (egg_pack), each read once a row of warps and byte, with
// no barrier inside a product. The low-rank term, floor shift, division, clip, gates and residual happen in the
// registers of the accumulators. Between products, row phases give each warp whole members: LayerNorm, the dot
// products x . B_r, the score. Blocks are persistent: grid.x <= tiles, a block takes every gridDim.x-th tile.

struct Lease {
    const i8* embedding;     // (256, D), the start of the parameters
    const u8* packed;        // egg_pack
    const i8* vectors;       // egg_vectors
    const i8* factors;       // (pairs, factor_stride); not read if rank = 0
    const u8* rows;          // (rows, row_bytes)
    const i32* row_of_pair;  // (pairs,), or null: member m reads row m
    i8* state;               // (members, L, D), read and overwritten
    i32* scores;             // (members,), written, or null
    i8* logits;              // (members, 256) of the last byte, written, or null
    Shape shape;
    i32 members, noise_shift, row_bytes, steps, burn_in;
    i32 divisor_width, multiplier_width, divisor_hidden, multiplier_hidden;  // of inputs of width D and 4 D
    u32 scale_width, scale_hidden, inverse_width;                            // see Divisor; 2^32 / D, rounded up
    i32 factor_stride, vector_stride;  // of a pair's factors, of a member's vectors (0: one row serves all)
};

ES_DEVICE uint2 pack8(i32 (&v)[8]) { return {pack4(v[0], v[1], v[2], v[3]), pack4(v[4], v[5], v[6], v[7])}; }
ES_DEVICE uint2 clip8(i32 (&v)[8]) { return {clip4(v[0], v[1], v[2], v[3]), clip4(v[4], v[5], v[6], v[7])}; }

// c((acc + (noise >> S)) div (16 isqrt(in))). A power of two (multiplier 0) is a shift; otherwise, within the range
// that c keeps, the floor of (v + 1/2) / d by multiplier = 2^30 / d: its error, 2^-14, is below the 1 / (2 d) needed
// to cross. Where acc 2^S + noise cannot overflow, its floor by 2^S d is the same number, and one shift does both:
// scale is then 2^S, otherwise 0, and the noise is summed on acc x scale.
struct Divisor {
    i32 divisor, multiplier;
    u32 scale;
    ES_DEVICE uint2 divide(const i32 (&acc)[8], const u32 (&sum)[8], i32 noise_shift) const {
        const i32 shift = 31 - __clz(divisor);
        i32 v[8];
        if (scale) {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = (i32)sum[j] >> (shift + noise_shift);
            return clip8(v);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = acc[j] + ((i32)sum[j] >> noise_shift);
        if (multiplier == 0) {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] >>= shift;
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j)
                v[j] = __mulhi(4 * max(-127 * divisor, min(128 * divisor - 1, v[j])) + 2, multiplier);
        }
        return clip8(v);
    }
};

// trunc(16 2^(i/16)) = kMantissa[i mod 16] >> (15 - i div 16): a floor of a floor is the floor.
__constant__ i32 kMantissa[16] = {524288, 547500, 571740, 597053, 623487, 651091, 679917, 710019,
                                  741455, 774282, 808562, 844360, 881743, 920781, 961548, 1004119};
// Least s in [2^27, 2^28) with 16 log2(s / 2^27) >= j + 1, j = 0 .. 14; the last is never reached.
__constant__ u32 kLogSteps[16] = {140160055, 146365471, 152845624, 159612678,  166679335, 174058859,
                                  181765103, 189812532, 198216250, 206992034,  216156354, 225726413,
                                  235720175, 246156399, 257054674, 0xFFFFFFFFu};

// Shared memory of a tile of `rows` members. _launch.py mirrors its size; Tile checks it.
struct Places {
    i32 plain_stride, operand_stride, wide_stride;  // bytes of a member
    i8 *x, *u;                                      // residual stream; LayerNorm's output (an operand) or a result
    i8 *state, *passed, *gate, *term, *hidden;      // hidden, and the logits, share the space of the four before
    i32* dots;                                      // [3][rows][rank], the member's sign included
    i32 *total, *token, *text, *mantissa;           // [rows] each, [16]
    u32* log_steps;                                 // [16]
    i32* reciprocals;                               // [128], 2^30 / n

    ES_DEVICE Places(u8* shared, i32 rows, i32 width, i32 rank) {
        const i32 padded = pad(width, 32);
        plain_stride = padded + 32;    // conflict-free for the accumulators' 8-byte rows
        operand_stride = padded + 16;  // an odd number of 16 bytes: conflict-free for ldmatrix
        wide_stride = pad(4 * width, 32) + 16;
        x = (i8*)shared, u = x + rows * plain_stride, hidden = u + rows * operand_stride;
        state = hidden, passed = state + rows * operand_stride;
        gate = passed + rows * operand_stride, term = gate + rows * plain_stride;
        dots = (i32*)(hidden + rows * max(max(2 * operand_stride + 2 * plain_stride, wide_stride), kVocabulary + 16));
        total = dots + 3 * rows * rank, token = total + rows, text = token + rows;
        mantissa = text + rows, log_steps = (u32*)(mantissa + 16), reciprocals = mantissa + 32;
    }
};

// What a product reads and where its results go; chosen at run time, so that its code exists once.
struct Product {
    Matrix matrix;
    const i8* operand;
    i8* result;
    i32 operand_stride, result_stride;
    i32* dots;
};

template <int MT, int WM, int WN>
struct Tile {
    static constexpr int kRows = 16 * MT * WM, kWarps = WM * WN, kThreads = 32 * kWarps;
    static constexpr int kPairs = (kRows / 2 + kWarps - 1) / kWarps;  // of one warp in a row phase

    const Lease& f;
    u8* const shared;
    i32 first;  // member of row 0

    ES_DEVICE Tile(const Lease& lease, u8* memory) : f(lease), shared(memory), first(0) {
        const Places here = places();
        check_shared((u8*)(here.reciprocals + 128) - shared);
        for (u32 i = threadIdx.x; i < 16; i += kThreads)
            here.mantissa[i] = kMantissa[i], here.log_steps[i] = kLogSteps[i];
        for (i32 i = threadIdx.x; i < 128; i += kThreads) here.reciprocals[i] = i ? ((1 << 30) + i / 2) / i : 0;
    }

    // Made anew by each phase: a dozen instructions, where members would hold a dozen registers during a product.
    ES_DEVICE Places places() const {
        i32 width = f.shape.width;
        opaque(width);
        return Places(shared, kRows, width, f.shape.rank);
    }
    ES_DEVICE int lane() const { return threadIdx.x & 31; }
    ES_DEVICE int warp() const { return threadIdx.x >> 5; }
    ES_DEVICE bool exists(int row) const { return first + row < f.members; }
    // Rows behind the last member repeat it, unseen.
    ES_DEVICE i32 member(int row) const { return min(first + row, f.members - 1); }
    // Addresses of 32 bits behind a base: a launch's arrays stay below 4 GB (_launch.py).
    ES_DEVICE const i8* factors(int row, i32 offset) const {
        return f.factors + (((u32)member(row) >> 1) * (u32)f.factor_stride + (u32)offset);
    }
    ES_DEVICE const i8* vector(int row, i32 index, i32 offset) const {
        return f.vectors + ((u32)member(row) * (u32)f.vector_stride + (u32)(index * f.shape.width + offset));
    }
    ES_DEVICE i8* outside_state(int row, i32 layer, i32 offset) const {
        return f.state + (((u32)member(row) * (u32)f.shape.layers + (u32)layer) * (u32)f.shape.width + (u32)offset);
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
        const Places here = places();
        each_row([&](int row) {
            if (lane()) return;
            const i32 m = member(row);
            here.text[row] = f.row_of_pair ? f.row_of_pair[m / 2] : m;
            here.total[row] = 0;
        });
        __syncwarp();
    }

    // x = c(E[k] + ((sum_r sign A_r[k] B_r) >> S)).
    ES_DEVICE void embed(i32 step) {
        const Places here = places();
        const i32 width = f.shape.width, rank = f.shape.rank;
        each_row([&](int row) {
            const i32 k = f.rows[(i64)here.text[row] * f.row_bytes + step];
            if (lane() == 0) here.token[row] = k;
#pragma unroll 1
            for (i32 at = 4 * lane(); at < width; at += 128) {
                const u32 word = *(const u32*)(f.embedding + k * width + at);
                i32 sum[4] = {};
#pragma unroll 1
                for (i32 r = 0; r < rank; ++r) {
                    const i32 a = *factors(row, r * kVocabulary + k), factor = row & 1 ? -a : a;
                    const u32 b = load_noise4(factors(row, rank * kVocabulary + r * width + at));
                    for (int j = 0; j < 4; ++j) sum[j] += factor * byte_of(b, j);
                }
                for (int j = 0; j < 4; ++j) sum[j] = byte_of(word, j) + (sum[j] >> f.noise_shift);
                *(u32*)(here.x + row * here.plain_stride + at) = clip4(sum[0], sum[1], sum[2], sum[3]);
            }
        });
        __syncwarp();
    }

    // The operand of Uf; a separator (byte 0) starts from zero.
    ES_DEVICE void load_state(i32 layer) {
        const Places here = places();
        each_row([&](int row) {
#pragma unroll 1
            for (i32 at = 4 * lane(); at < f.shape.width; at += 128)
                *(u32*)(here.state + row * here.operand_stride + at) =
                    here.token[row] ? *(const u32*)outside_state(row, layer, at) : 0;
        });
    }

    // u = c((x w) div max(1, (sum |x|) div D)). The means' reciprocals come from a table, 1 / D from the launcher:
    // below 2^17, times the rounded-up 2^32 / D, the high word is the exact quotient.
    ES_DEVICE void normalise(i32 index) {
        const Places here = places();
        const i32 width = f.shape.width;
        each_row([&](int row) {
            const i8* from = here.x + row * here.plain_stride;
            i32 sum = 0;
#pragma unroll 1
            for (i32 at = 8 * lane(); at < width; at += 256) {
                const uint2 eight = *(const uint2*)(from + at);
                sum = dot4(absolute(eight.x), 0x01010101, dot4(absolute(eight.y), 0x01010101, sum));
            }
            const i32 mean = max(1, (i32)__umulhi((u32)warp_sum(sum), f.inverse_width)),
                      reciprocal = here.reciprocals[mean];
#pragma unroll 1
            for (i32 at = 8 * lane(); at < width; at += 256) {
                const uint2 a = *(const uint2*)(from + at), b = load_noise8(vector(row, index, at));
                i32 y[8];  // the floor of (v + 1/2) / mean, |v| < 2^14: as in Divisor
#pragma unroll
                for (int j = 0; j < 8; ++j) y[j] = __mulhi(4 * byte_of(a, j) * byte_of(b, j) + 2, reciprocal);
                *(uint2*)(here.u + row * here.operand_stride + at) = clip8(y);
            }
        });
        __syncwarp();
    }

    // |x| of four bytes in -127 .. 127.
    ES_DEVICE static u32 absolute(u32 word) {
        const u32 negative = word >> 7 & 0x01010101u;
        return (word ^ negative * 255) + negative;
    }

    // dots[row][r] = sign (operand . B_r). All pairs of the warp at once: their loads overlap.
    ES_DEVICE void dot(const Product& p) {
        const i32 rank = f.shape.rank;
#pragma unroll 1
        for (i32 r = 0; r < rank; ++r) {
            const i32 offset = p.matrix.factors + rank * p.matrix.out + r * p.matrix.in;
            i32 even[kPairs] = {}, odd[kPairs] = {};
#pragma unroll 1
            for (i32 at = 8 * lane(); at < p.matrix.in; at += 256) {
                uint2 b[kPairs];
                each_pair([&](int i, int row) { b[i] = load_noise8(factors(row, offset + at)); });
                each_pair([&](int i, int row) {
                    const i8* from = p.operand + row * p.operand_stride + at;
                    even[i] = dot8(*(const uint2*)from, b[i], even[i]);
                    odd[i] = dot8(*(const uint2*)(from + p.operand_stride), b[i], odd[i]);
                });
            }
            each_pair([&](int i, int row) {
                const i32 plus = warp_sum(even[i]), minus = -warp_sum(odd[i]);
                if (lane() < 2) p.dots[(row + lane()) * rank + r] = lane() ? minus : plus;
            });
        }
    }

    ES_DEVICE static i32 dot8(uint2 a, uint2 b, i32 sum) {
        return dot4(a.x, b.x, dot4(a.y, b.y, sum));
    }

    // ---- products: a warp takes 16 MT members and every WN-th group of 32 outputs -----------------------------

    ES_DEVICE void product(const Product& p, i32 layer, i32 which) {
        const i32 steps = (p.matrix.in + 31) / 32, row0 = warp() / WN * 16 * MT;
        const bool wide = which == kMlp1;
        const Divisor divisor = {wide ? f.divisor_hidden : f.divisor_width,
                                 wide ? f.multiplier_hidden : f.multiplier_width,
                                 wide ? f.scale_hidden : f.scale_width};
#pragma unroll 1
        for (i32 group = warp() % WN; group < (p.matrix.out + 31) / 32; group += WN) {
            i32 acc[MT][4][4] = {};
            const uint4* weights = (const uint4*)f.packed + (64 * (i64)(p.matrix.packed + group * steps) + lane());
            const i8* from = p.operand + (row0 + (lane() & 15)) * p.operand_stride + (lane() >> 4) * 16;
            uint4 even0 = __ldg(weights), even1 = __ldg(weights + 32);
            i32 left = steps;  // two at a time: the weights of one step are on their way while the other multiplies
#pragma unroll 1
            for (; left > 1; left -= 2, weights += 128, from += 64) {
                const uint4 odd0 = __ldg(weights + 64), odd1 = __ldg(weights + 96);
                multiply(acc, from, p.operand_stride, even0, even1);
                if (left > 2) even0 = __ldg(weights + 128), even1 = __ldg(weights + 160);
                multiply(acc, from + 32, p.operand_stride, odd0, odd1);
            }
            if (left) multiply(acc, from, p.operand_stride, even0, even1);
            i32 row = row0 + (lane() >> 2);
            const i32 out = 32 * group + 8 * (lane() & 3);
            opaque(row);
            if (out < p.matrix.out) {
                finish(p, acc, row, out, divisor);
                fuse(row, out, layer, which);
            }
        }
    }

    // acc += 16 MT members x 32 inputs from shared memory times 32 inputs x 32 outputs.
    ES_DEVICE static void multiply(i32 (&acc)[MT][4][4], const i8* from, i32 stride, uint4 b0, uint4 b1) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            u32 a[4];
            load_matrix(a, from + 16 * i * stride);
            mma_s8(acc[i][0], a, b0.x, b0.y), mma_s8(acc[i][1], a, b0.z, b0.w);
            mma_s8(acc[i][2], a, b1.x, b1.y), mma_s8(acc[i][3], a, b1.z, b1.w);
        }
    }

    // result = c((acc + ((sum_r (x . B_r) (sign A_r)) >> S)) div (16 isqrt(in))), rows row, row + 8, ..
    // With rank 1 the factors of MT rows are asked for at once: two waits for L2 instead of one a row.
    ES_DEVICE void finish(const Product& p, i32 (&acc)[MT][4][4], i32 row0, i32 out, const Divisor& by) {
        const i32 rank = f.shape.rank;
        uint2 one[MT];
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
            const i32 row = row0 + 8 * i;
            if (rank == 1 && i % MT == 0)
#pragma unroll
                for (int k = 0; k < MT; ++k) one[k] = factor8(p, row + 8 * k, out, 0);
            i32 v[8];
            u32 sum[8];  // unsigned: modulo 2^32
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                v[j] = acc[i / 2][j / 2][i % 2 * 2 + j % 2];
                sum[j] = (u32)v[j] * by.scale;
            }
            if (rank == 1) add_factor(p.dots[row], one[i % MT], sum);
            else
#pragma unroll 1
                for (i32 r = 0; r < rank; ++r) add_factor(p.dots[row * rank + r], factor8(p, row, out, r), sum);
            *(uint2*)(p.result + row * p.result_stride + out) = by.divide(v, sum, f.noise_shift);
        }
    }

    ES_DEVICE uint2 factor8(const Product& p, i32 row, i32 out, i32 r) const {
        return load_noise8(factors(row, p.matrix.factors + r * p.matrix.out + out));
    }

    // sum += (x . B_r) (sign A_r).
    ES_DEVICE static void add_factor(i32 dot, uint2 a, u32 (&sum)[8]) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += (u32)dot * (u32)byte_of(a, j);
    }

    // The elementwise arithmetic behind a product, on the results that this lane has just stored.
    ES_DEVICE void fuse(i32 row0, i32 out, i32 layer, i32 which) {
        if (which != kUf && which != kUh && which != kMlp1) return;
        const Places here = places();
#pragma unroll 1
        for (int row = row0; row < row0 + 16 * MT; row += 8) {
            if (which == kUf) gate_state(here, row, out, 4 * layer + kBf);
            else if (which == kUh) update_state(here, row, out, layer);
            else add_residual(here, row, out, *(const uint2*)(here.u + row * here.operand_stride + out));
        }
    }

    // f = c(Wf u + Uf s + bf); p = ((f + 127) s) >> 8.
    ES_DEVICE void gate_state(const Places& here, i32 row, i32 out, i32 bias) {
        uint2* at = (uint2*)(here.gate + row * here.plain_stride + out);
        const uint2 w = *(const uint2*)(here.term + row * here.plain_stride + out),
                    b = load_noise8(vector(row, bias, out)), y = *at;
        const uint2 s = *(const uint2*)(here.state + row * here.operand_stride + out);
        i32 forget[8], p[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            forget[j] = max(-127, min(127, byte_of(w, j) + byte_of(y, j) + byte_of(b, j)));
            p[j] = ((forget[j] + 127) * byte_of(s, j)) >> 8;
        }
        *at = pack8(forget);
        *(uint2*)(here.passed + row * here.operand_stride + out) = pack8(p);
    }

    // k = c(Wh u + Uh p + bh); s += ((f + 127) (k - s)) >> 8; x = c(x + s).
    ES_DEVICE void update_state(const Places& here, i32 row, i32 out, i32 layer) {
        const uint2 b = load_noise8(vector(row, 4 * layer + kBh, out));
        const uint2 w = *(const uint2*)(here.term + row * here.plain_stride + out);
        const uint2 y = *(const uint2*)(here.u + row * here.operand_stride + out);
        const uint2 forget = *(const uint2*)(here.gate + row * here.plain_stride + out);
        const uint2 s = *(const uint2*)(here.state + row * here.operand_stride + out);
        i32 next[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const i32 candidate = max(-127, min(127, byte_of(w, j) + byte_of(y, j) + byte_of(b, j))),
                      old = byte_of(s, j);
            next[j] = old + (((byte_of(forget, j) + 127) * (candidate - old)) >> 8);
        }
        const uint2 packed = pack8(next);
        if (exists(row)) *(uint2*)outside_state(row, layer, out) = packed;
        add_residual(here, row, out, packed);
    }

    ES_DEVICE void add_residual(const Places& here, i32 row, i32 out, uint2 y) {
        uint2* residual = (uint2*)(here.x + row * here.plain_stride + out);
        const uint2 before = *residual;
        i32 sum[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] = byte_of(before, j) + byte_of(y, j);
        *residual = clip8(sum);
    }

    // ---- one byte --------------------------------------------------------------------------------------------

    ES_DEVICE Product product_of(i32 layer, i32 which) const {
        const Places here = places();
        Product p = {
            matrix_of(f.shape, layer, which), here.u, here.term, here.operand_stride, here.plain_stride, here.dots};
        if (which == kUf) p.operand = here.state, p.result = here.gate, p.dots += kRows * f.shape.rank;
        if (which == kWh) p.dots += 2 * kRows * f.shape.rank;
        if (which == kUh) p.operand = here.passed;
        if (which == kMlp1) p.operand = here.hidden, p.operand_stride = here.wide_stride;
        if (which == kUh || which == kMlp1) p.result = here.u, p.result_stride = here.operand_stride;
        if (which == kMlp0) p.result = here.hidden, p.result_stride = here.wide_stride;
        if (which == kHead) p.result = here.hidden, p.result_stride = kVocabulary + 16;
        return p;
    }

    // Row phases in front of a product. Those of Uf and Wh are done with Wf's: three products without a barrier.
    ES_DEVICE void before(i32 layer, i32 which) {
        if (which == kWf) load_state(layer);
        if (which == kWf || which == kMlp0 || which == kHead) normalise(4 * layer + (which == kMlp0 ? kLn2 : kLn1));
#pragma unroll 1
        for (i32 next = which; next <= (which == kWf ? kWh : which); ++next) dot(product_of(layer, next));
    }

    // The next product's factors to L2, where they arrive during this one: they are read once a byte, from memory.
    ES_DEVICE void prefetch_factors(i32 at) const {
        const Matrix m = matrix_of(f.shape, at / 6, at == 6 * f.shape.layers ? kHead : at % 6);
        const i32 bytes = f.shape.rank * (m.out + m.in), lines = (bytes + 127) / 128;
#pragma unroll 1
        for (i32 n = threadIdx.x; n < kRows / 2 * lines; n += kThreads)
            prefetch(factors(n / lines * 2, m.factors + min(n % lines * 128, bytes - 1)));
    }

    // Product `at` of a byte, with what comes before and behind it.
    ES_DEVICE void run_product(i32 at) {
        const i32 layer = at / 6, which = at == 6 * f.shape.layers ? kHead : at % 6;
        if (which != kUf && which != kWh) {
            before(layer, which);
            __syncthreads();
        }
        if (f.shape.rank) prefetch_factors(which == kHead ? 0 : at + 1);
        product(product_of(layer, which), layer, which);
        if (which != kWf && which != kUf) __syncthreads();
    }

    // total += z[target] - trunc(16 log2(sum_j X[z_j] / 16)), z = logits + 128.
    ES_DEVICE void score(i32 step) {
        const Places here = places();
        each_row([&](int row) {
            const i8* logits = here.hidden + row * (kVocabulary + 16);
            const uint2 eight = *(const uint2*)(logits + 8 * lane());
            i32 sum = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const i32 z = byte_of(eight, j) + 128;
                sum += here.mantissa[z & 15] >> (15 - (z >> 4));
            }
            sum = warp_sum(sum);
            const int exponent = 31 - __clz(sum);
            const bool reached = (u32)sum << (27 - exponent) >= here.log_steps[lane() & 15];
            const i32 log = 16 * (exponent - 4) + __popc(__ballot_sync(FULL_WARP, reached) & 0xFFFF);
            const i32 target = f.rows[(i64)here.text[row] * f.row_bytes + step + 1];
            if (lane() == 0) here.total[row] += logits[target] + 128 - log;
        });
    }

    ES_DEVICE void store_logits() {
        const Places here = places();
        each_row([&](int row) {
            if (exists(row))
                *(uint2*)(f.logits + (i64)member(row) * kVocabulary + 8 * lane()) =
                    *(const uint2*)(here.hidden + row * (kVocabulary + 16) + 8 * lane());
        });
    }

    ES_DEVICE void run() {
        begin();
        const i32 products = 6 * f.shape.layers + 1;
#pragma unroll 1
        for (i32 n = 0; n < f.steps * products; ++n) {  // one counter, for the registers' sake
            const i32 step = n / products, at = n - step * products;
            if (at == 0) embed(step);
            run_product(at);
            if (at + 1 < products) continue;
            if (f.scores && step >= f.burn_in) score(step);
            if (f.logits && step + 1 == f.steps) store_logits();
            __syncthreads();  // the logits' space is the next byte's state
        }
        const Places here = places();
        each_row([&](int row) {
            if (f.scores && exists(row) && lane() == 0) f.scores[member(row)] = here.total[row];
        });
    }
};

template <class Tile>
ES_DEVICE void forward(const Lease& lease) {
    ES_SHARED(shared);
    Tile tile(lease, shared);
    for (tile.first = blockIdx.x * Tile::kRows; tile.first < lease.members; tile.first += gridDim.x * Tile::kRows) {
        __syncthreads();
        tile.run();
    }
}

// clang-format off
#define ES_LEASE_PARAMETERS                                                                                            \
    const i8 *__restrict__ embedding, const u8 *__restrict__ packed, const i8 *__restrict__ vectors,                   \
    const i8 *__restrict__ factors, const u8 *__restrict__ rows, const i32 *__restrict__ row_of_pair, i8 *state,       \
    i32 *scores, i8 *logits, i32 width, i32 layers, i32 rank, i32 members, i32 noise_shift, i32 row_bytes, i32 steps,  \
    i32 burn_in, i32 divisor_width, i32 multiplier_width, i32 divisor_hidden, i32 multiplier_hidden, u32 scale_width,  \
    u32 scale_hidden, u32 inverse_width, i32 factor_stride, i32 vector_stride
#define ES_LEASE                                                                                                       \
    {embedding, packed, vectors, factors, rows, row_of_pair, state, scores, logits, {width, layers, rank}, members,    \
     noise_shift, row_bytes, steps, burn_in, divisor_width, multiplier_width, divisor_hidden, multiplier_hidden,       \
     scale_width, scale_hidden, inverse_width, factor_stride, vector_stride}
// clang-format on

// The name's number is kRows; _launch.py takes the tile that fills the device and fits its shared memory.
ES_KERNEL __launch_bounds__(512, 1) egg_forward_16(ES_LEASE_PARAMETERS) { forward<Tile<1, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_32(ES_LEASE_PARAMETERS) { forward<Tile<2, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_64(ES_LEASE_PARAMETERS) { forward<Tile<4, 1, 16>>(ES_LEASE); }
ES_KERNEL __launch_bounds__(512, 1) egg_forward_128(ES_LEASE_PARAMETERS) { forward<Tile<4, 2, 8>>(ES_LEASE); }
