// egg_pack: weights in the order of the mma operands, once a generation. egg_vectors: the vectors of every member
// with their noise, once a lease: c(p + ((sign u v) >> S)) does not change from byte to byte.

// The 16 bytes of operands 2h and 2h + 1 of one lane: inputs 4t .. 4t + 3 and + 16 of two outputs.
ES_DEVICE uint4 packed16(const i8* weights, Matrix m, i32 group, i32 step, i32 half, i32 lane) {
    u32 words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const i32 operand = 2 * half + k / 2, column = lane / 4;
        const i32 out = 32 * group + 8 * (column / 2) + 2 * operand + column % 2;
        const i32 in = 32 * step + 16 * (k % 2) + 4 * (lane % 4);
        words[k] = out < m.out && in < m.in ? *(const u32*)(weights + m.parameters + (i64)out * m.in + in) : 0;
    }
    return {words[0], words[1], words[2], words[3]};
}

// grid.x = 6 layers + 1 matrices, grid.y shares the pieces of 16 bytes of each. Overwrites `packed`.
ES_KERNEL __launch_bounds__(256) egg_pack(const i8* __restrict__ parameters,  // (P,)
                                          u8* __restrict__ packed, i32 width, i32 layers) {
    const Shape shape = {width, layers, 0};
    const Matrix m = matrix_of(shape, blockIdx.x / 6, (i32)blockIdx.x == 6 * layers ? kHead : blockIdx.x % 6);
    const i32 steps = (m.in + 31) / 32, pieces = (m.out + 31) / 32 * steps * 64;
    for (i32 at = blockIdx.y * blockDim.x + threadIdx.x; at < pieces; at += gridDim.y * blockDim.x) {
        const i32 block = at / 64, piece = at % 64;
        *(uint4*)(packed + 1024 * (i64)m.packed + 16 * (i64)at) =
            packed16(parameters, m, block / steps, block % steps, piece / 32, piece % 32);
    }
}

// vectors[m][j], j over the 4 L + 1 vectors. Without noise (products null) one row serves all. Overwrites `vectors`.
ES_KERNEL __launch_bounds__(256) egg_vectors(const i8* __restrict__ parameters,  // (P,)
                                             const i16* __restrict__ products,   // (pairs, V) or null
                                             i8* __restrict__ vectors,           // (2 pairs, V) or (1, V)
                                             i32 width, i32 layers, i32 noise_shift, i32 pairs) {
    const Shape shape = {width, layers, 0};
    const i32 count = (4 * layers + 1) * width, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const i32 vector = at / width;
    const i32 value = parameters[vector_parameters(shape, vector / 4, vector % 4) + at % width];
    if (!products) {
        vectors[at] = (i8)max(value, -127);
        return;
    }
    for (i32 pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
        const i32 product = products[(i64)pair * count + at];
        i8* to = vectors + (i64)2 * pair * count + at;
        to[0] = (i8)max(-127, min(127, value + (product >> noise_shift)));
        to[count] = (i8)max(-127, min(127, value + (-product >> noise_shift)));
    }
}
