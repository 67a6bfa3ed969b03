// noise_fill: factors_QF = T[A], T[B] and products_QV = u v of consecutive units, from counters (specs/formats.md).
//
// One launch a wave of the forward pass: 2 592 counters a pair at D = 256, L = 6, rank 1. A job is one stream of one
// tensor; grid.x = jobs, grid.y covers (unit, block of 16 entries), a thread makes one block. Overwrites its output.

struct NoiseJob {
    i64 place;   // stream << 24 | tensor index; of a vector that of u, v is the next stream
    i64 vector;  // 1: products, 0: factors
    i64 offset;  // of the first entry in a unit's factors or products
    i64 size;
};

ES_DEVICE void store_factors(i8* to, const uint4& words, i64 count) {
    if (count >= 16 && ((u64)to & 15) == 0) {
        *(uint4*)to = words;
        return;
    }
    for (int j = 0; j < 16 && j < count; ++j) to[j] = (i8)byte_of(word_of(words, j / 4), j % 4);
}

ES_DEVICE void store_products(i16* to, const uint4& u, const uint4& v, i64 count) {
#pragma unroll
    for (int j = 0; j < 16; ++j)
        if (j < count) to[j] = (i16)(byte_of(word_of(u, j / 4), j % 4) * byte_of(word_of(v, j / 4), j % 4));
}

ES_KERNEL __launch_bounds__(256)
    noise_fill(const i64* __restrict__ jobs,  // (jobs, 4)
               const i8* __restrict__ table,  // (256,)
               i8* __restrict__ factors,      // (units, factor_stride), written
               i16* __restrict__ products,    // (units, product_stride), written
               u32 key0, u32 key1, u32 epoch, u32 first_unit, i32 units, i64 factor_stride, i64 product_stride) {
    ES_SHARED(shared);
    i8* local = (i8*)shared;
    copy_table(local, table);
    const NoiseJob job = {jobs[4 * blockIdx.x], jobs[4 * blockIdx.x + 1], jobs[4 * blockIdx.x + 2],
                          jobs[4 * blockIdx.x + 3]};
    const Key key = {key0, key1, epoch};
    const u32 place = (u32)job.place;
    const i64 blocks = (job.size + 15) / 16;
    for (i64 at = (i64)blockIdx.y * blockDim.x + threadIdx.x; at < units * blocks; at += (i64)gridDim.y * blockDim.x) {
        const i64 unit = at / blocks, block = at - unit * blocks;
        const u32 address = first_unit + (u32)unit;
        const uint4 words = noise16(local, key, (u32)block, place, address);
        if (job.vector) {
            const uint4 v = noise16(local, key, (u32)block, place + (1u << 24), address);
            store_products(products + unit * product_stride + job.offset + 16 * block, words, v, job.size - 16 * block);
        } else {
            store_factors(factors + unit * factor_stride + job.offset + 16 * block, words, job.size - 16 * block);
        }
    }
}
