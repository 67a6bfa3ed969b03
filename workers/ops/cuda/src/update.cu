// Votes to weights (specs/egg.md, Votes and update): vote_matrix, vote_vector, apply_step; and the digest.
//
// The launches over the last units of a generation end in the step itself: threshold and +-1 happen on the sums in
// registers, which never reach memory. Launches before them, and partial sums for others, add to sums in memory.
//
// Z = sum over units of vote A B^T is an int8 product whose depth runs over (unit, r). Its operands are rebuilt from
// counters on the fly: 16 counters for every 128 x 128 x 1 slice, so the integer units bound it and not memory (see
// docs/gpu-kernels.md); abstentions never reach it. Recorded noise takes the same path from arrays.

struct NoiseSource {
    const i8* table;    // in shared memory
    const i8* factors;  // (units, factor_stride), or null: counters
    const i32* units;   // (active,) units that voted, relative to first_unit
    i64 factor_stride;
    u32 first_unit;
    Key key;
    bool signs;
};

// One 128 x 128 tile of one matrix, as _launch.py lists them.
struct VoteTile {
    i64 out, in, sums, first, second, index, row, column;
};

enum { kTileEdge = 128, kTileDepth = 64, kTileStride = kTileDepth + 16, kStageStride = kTileEdge + 8 };

ES_DEVICE u32 signs4(u32 word) {
    u32 result = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) result |= (u32)(u8)sign_of(byte_of(word, j)) << 8 * j;
    return result;
}

// Entries n .. n + 15 of a factor of one unit, those at or after `size` zero. From counters n is a multiple of 16.
ES_DEVICE uint4 factor16(const NoiseSource& s, i32 unit, u32 place, i64 offset, i64 n, i64 size) {
    uint4 words = {0, 0, 0, 0};
    if (!s.factors) {
        words = noise16(s.table, s.key, (u32)(n / 16), place, s.first_unit + (u32)unit);
    } else {
        const i8* from = s.factors + unit * s.factor_stride + offset + n;
        if (n + 16 <= size && ((u64)from & 15) == 0) {
            words = *(const uint4*)from;
        } else {
            u32 parts[4] = {};
#pragma unroll
            for (int j = 0; j < 16; ++j)
                if (n + j < size) parts[j / 4] |= (u32)(u8)from[j] << 8 * (j % 4);
            words = {parts[0], parts[1], parts[2], parts[3]};
        }
    }
    if (s.signs) words = {signs4(words.x), signs4(words.y), signs4(words.z), signs4(words.w)};
    return words;
}

// 16 entries of one factor for four consecutive depths, transposed into to[entry][depth]; A takes the votes' signs.
// Depth k is (active unit k div rank, r = k mod rank); depths from `depths` on are zero.
ES_DEVICE void stage16(const NoiseSource& s, const i8* votes, i32 rank, i32 depth, i32 depths, u32 place, i64 offset,
                       i64 size, i64 begin, i8* to) {
    uint4 four[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const i32 k = depth + j;
        four[j] = {0, 0, 0, 0};
        if (k >= depths || begin >= size) continue;
        const i32 active = k / rank, r = k - active * rank;
        four[j] = factor16(s, s.units[active], place, offset, r * size + begin, (r + 1) * size);
        if (votes && votes[active] < 0) {
            u32* w = &four[j].x;
#pragma unroll
            for (int q = 0; q < 4; ++q)  // -v of each byte, without carries between them
                w[q] = ((~w[q] & 0x7F7F7F7Fu) + 0x01010101u) ^ (~w[q] & 0x80808080u);
        }
    }
#pragma unroll
    for (int entry = 0; entry < 16; ++entry) {
        u32 word = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) word |= (u32)(u8)byte_of(word_of(four[j], entry / 4), entry % 4) << 8 * j;
        *(u32*)(to + entry * kTileStride) = word;
    }
}

// acc (64 rows x 32 columns of a warp) += rows x columns over one staged depth.
ES_DEVICE void multiply_stage(i32 (&acc)[4][4][4], const i8* rows, const i8* columns) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const i8* from = rows + (warp / 4 * 64 + (lane & 15)) * kTileStride + (lane >> 4) * 16;
    const i8* column = columns + (warp % 4 * 32 + (lane >> 2)) * kTileStride + 4 * (lane & 3);
#pragma unroll
    for (int step = 0; step < kTileDepth / 32; ++step) {
        u32 b[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            for (int half = 0; half < 2; ++half)
                b[j][half] = *(const u32*)(column + 8 * j * kTileStride + 32 * step + 16 * half);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 a[4];
            load_matrix(a, from + 16 * i * kTileStride + 32 * step);
            for (int j = 0; j < 4; ++j) mma_s8(acc[i][j], a, b[j][0], b[j][1]);
        }
    }
}

// Where sums go: to memory, or with parameters through the threshold to the weights.
struct Target {
    i32* sums;       // (P,), +=; with parameters read only, and null where no units came before
    i8* parameters;  // (P,), +=, or null
    u64* moved;      // (1,), +=
    u32 least;
};

// Moves a weight with |z| >= least by one, up if z > 0, else down, saturating; whether it passed.
ES_DEVICE i32 step_weight(i8* weight, i32 z, u32 least) {
    const u32 absolute = z < 0 ? 0u - (u32)z : (u32)z;  // 2^31 stays itself, which is right as an unsigned number
    if (absolute < least) return 0;
    *weight = (i8)max(-127, min(127, *weight + (z > 0 ? 1 : -1)));
    return 1;
}

ES_DEVICE i32 settle(const Target& t, i64 at, i32 z) {
    if (t.sums) z = (i32)((u32)t.sums[at] + (u32)z);
    if (t.parameters) return step_weight(t.parameters + at, z, t.least);
    t.sums[at] = z;
    return 0;
}

// The whole warp calls.
ES_DEVICE void count_moves(u64* moved, i32 count) {
    count = warp_sum(count);
    if ((threadIdx.x & 31) == 0 && count) atomicAdd(moved, (u64)count);
}

// Through shared memory, a quarter at a time: memory is then touched in whole rows, by a loop that is not unrolled.
ES_DEVICE void settle_tile(const i32 (&acc)[4][4][4], const VoteTile& t, const Target& target, i32* stage) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i32 count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        i32* to = stage + (warp / 4 * 16 + (lane >> 2)) * kStageStride + warp % 4 * 32 + 2 * (lane & 3);
        for (int j = 0; j < 4; ++j)
            for (int k = 0; k < 4; ++k) to[k / 2 * 8 * kStageStride + 8 * j + k % 2] = acc[i][j][k];
        __syncthreads();
#pragma unroll 1
        for (i32 n = threadIdx.x; n < 32 * kTileEdge; n += 256) {
            const i32 r = n / kTileEdge, c = n % kTileEdge;
            const i64 row = t.row + r / 16 * 64 + 16 * i + r % 16, column = t.column + c;
            if (row < t.out && column < t.in)
                count += settle(target, t.sums + row * t.in + column, stage[r * kStageStride + c]);
        }
        __syncthreads();
    }
    if (target.parameters) count_moves(target.moved, count);
}

// One block a tile: Z of the active units to where it goes. votes: +1 or -1 of each.
ES_KERNEL __launch_bounds__(256)
    vote_matrix(const i64* __restrict__ tiles,   // (tiles, 8), see VoteTile
                const i8* __restrict__ table,    // (256,)
                const i8* __restrict__ factors,  // (units, factor_stride) or null
                const i32* __restrict__ units,   // (active,)
                const i8* __restrict__ votes,    // (active,)
                i32* __restrict__ sums,          // these four: see Target
                i8* __restrict__ parameters, u64* __restrict__ moved, u32 least, i32 active, i32 rank, i32 signs,
                u32 key0, u32 key1, u32 epoch, u32 first_unit, i64 factor_stride) {
    ES_SHARED(shared);
    i8 *local = (i8*)shared, *rows = local + 256, *columns = rows + kTileEdge * kTileStride;
    const i64* t = tiles + 8 * (i64)blockIdx.x;
    const VoteTile tile = {t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]};
    const NoiseSource source = {local, factors, units, factor_stride, first_unit, {key0, key1, epoch}, signs != 0};
    copy_table(local, table);
    // 128 threads stage A, 128 stage B; a thread makes 16 entries x 4 depths.
    const bool is_row = threadIdx.x < 128;
    const i32 entry = threadIdx.x % 8 * 16, quad = threadIdx.x / 8 % 16 * 4;
    const u32 place = (u32)(is_row ? kFactorA : kFactorB) << 24 | (u32)tile.index;
    const i64 offset = is_row ? tile.first : tile.second, size = is_row ? tile.out : tile.in;
    const i64 begin = (is_row ? tile.row : tile.column) + entry;
    i8* to = (is_row ? rows : columns) + entry * kTileStride + quad;
    i32 acc[4][4][4] = {};
#pragma unroll 1
    for (i32 depth = 0; depth < active * rank; depth += kTileDepth) {
        stage16(source, is_row ? votes : nullptr, rank, depth + quad, active * rank, place, offset, size, begin, to);
        __syncthreads();
        multiply_stage(acc, rows, columns);
        __syncthreads();
    }
    settle_tile(acc, tile, {sums, parameters, moved, least}, (i32*)rows);
}

// Z[j] = sum vote u_j v_j, 16 elements a block: threads share the units. Sums modulo 2^32, so any order is right.
ES_KERNEL __launch_bounds__(128) vote_vector(
    const i64* __restrict__ blocks,    // (blocks, 5): size, offset of the sums, first product, tensor index, element
    const i8* __restrict__ table,      // (256,)
    const i16* __restrict__ products,  // (units, product_stride) or null
    const i32* __restrict__ units,     // (active,)
    const i8* __restrict__ votes,      // (active,)
    i32* __restrict__ sums,            // these four: see Target
    i8* __restrict__ parameters, u64* __restrict__ moved, u32 least, i32 active, i32 signs, u32 key0, u32 key1,
    u32 epoch, u32 first_unit, i64 product_stride) {
    ES_SHARED(shared);
    i8* local = (i8*)shared;
    u32* parts = (u32*)(shared + 256);  // [4 warps][16]
    copy_table(local, table);
    const i64* b = blocks + 5 * (i64)blockIdx.x;
    const i64 size = b[0], at = b[4];
    const Key key = {key0, key1, epoch};
    i32 sum[16] = {};
    for (i32 i = threadIdx.x; i < active; i += blockDim.x) {
        uint4 u = {0, 0, 0, 0}, v = {0, 0, 0, 0};
        if (!products) {
            u = noise16(local, key, (u32)(at / 16), (u32)kVectorU << 24 | (u32)b[3], first_unit + (u32)units[i]);
            v = noise16(local, key, (u32)(at / 16), (u32)kVectorV << 24 | (u32)b[3], first_unit + (u32)units[i]);
        }
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            if (at + j >= size) break;
            const i32 value = products ? products[units[i] * product_stride + b[2] + at + j]
                                       : byte_of(word_of(u, j / 4), j % 4) * byte_of(word_of(v, j / 4), j % 4);
            sum[j] += votes[i] * (signs ? sign_of(value) : value);
        }
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const i32 all = warp_sum(sum[j]);
        if ((threadIdx.x & 31) == 0) parts[threadIdx.x / 32 * 16 + j] = (u32)all;
    }
    __syncthreads();
    const i32 j = threadIdx.x;
    i32 count = 0;
    if (j < 16 && at + j < size)
        count = settle({sums, parameters, moved, least}, b[1] + at + j,
                       (i32)(parts[j] + parts[16 + j] + parts[32 + j] + parts[48 + j]));
    if (parameters) count_moves(moved, count);
}

// The step alone, on sums in memory.
ES_KERNEL __launch_bounds__(256) apply_step(i8* __restrict__ parameters,   // (size,), +=
                                            const i32* __restrict__ sums,  // (size,)
                                            u64* __restrict__ moved,       // (1,), +=
                                            i64 size, u32 least) {
    i32 count = 0;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < size; at += (i64)gridDim.x * blockDim.x)
        count += step_weight(parameters + at, sums[at], least);
    count_moves(moved, count);
}

// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
ES_DEVICE u64 mix(u64 value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ull;
    value = (value ^ value >> 27) * 0x94D049BB133111EBull;
    return value ^ value >> 31;
}

// total += sum over the u64 words of one tensor (grid.y = tensors) of mix(word ^ mix(index << 40 | word number)).
ES_KERNEL __launch_bounds__(256) digest_words(const i8* __restrict__ parameters,  // (P,)
                                              const i64* __restrict__ tensors,    // (tensors, 3): offset, size, index
                                              u64* __restrict__ total) {          // (1,), +=
    const i64 offset = tensors[3 * blockIdx.y], size = tensors[3 * blockIdx.y + 1], index = tensors[3 * blockIdx.y + 2];
    u64 sum = 0;
    for (i64 k = (i64)blockIdx.x * blockDim.x + threadIdx.x; 8 * k < size; k += (i64)gridDim.x * blockDim.x) {
        const i8* from = parameters + offset + 8 * k;
        u64 word = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (8 * k + j < size) word |= (u64)(u8)from[j] << 8 * j;
        sum += mix(word ^ mix((u64)index << 40 | (u64)k));
    }
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    if ((threadIdx.x & 31) == 0 && sum) atomicAdd(total, sum);
}
