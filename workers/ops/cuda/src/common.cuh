// Types, intrinsics and counters shared by all kernels. Joined in front of every .cu file (_compile.py).
//
// The same text compiles for the GPU (NVRTC, no includes) and for the host (g++ behind shim/shim.hpp, which also
// defines the CUDA words used here). Whatever needs PTX is a function of this file with both forms side by side.

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define ES_DEVICE __device__ __forceinline__
#define ES_KERNEL extern "C" __global__ void
#define FULL_WARP 0xFFFFFFFFu
#ifdef __CUDA_ARCH__
#define ES_SHARED(name) u8* const name = shared_memory()
#define ES_CALLER
#define ES_PASS_CALLER
#else  // warp-wide functions know who called them: the shim compares that between lanes
#define ES_SHARED(name) u8* const name = shim::shared()
#define ES_CALLER , SHIM_SITE
#define ES_PASS_CALLER , file, line
#endif

#ifdef __CUDA_ARCH__
// Declared in one place: kernels have C linkage and templates do not, which NVRTC would warn of.
ES_DEVICE u8* shared_memory() {
    extern __shared__ __align__(16) u8 memory[];
    return memory;
}
#endif

// ---- tensor cores and packed bytes ---------------------------------------------------------------------------

// c (16 x 8 int32) += a (16 x 32 int8, row-major) b (32 x 8 int8, column-major), modulo 2^32, over one warp.
// Lane = 4 g + t. a[0], a[1]: rows g, g + 8, columns 4t .. 4t + 3; a[2], a[3]: the same, columns + 16.
// b0, b1: column g, rows 4t .. 4t + 3 and + 16. c[0], c[1]: row g, columns 2t, 2t + 1; c[2], c[3]: row g + 8.
ES_DEVICE void mma_s8(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1 ES_CALLER) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    shim::mma_s8(c, a, b0, b1, file, line);
#endif
}

// Four 8 x 16 byte matrices from shared memory: lane l gives the address of row l mod 8 of matrix l div 8 and gets
// bytes 4t .. 4t + 3 of row g of each. With rows 0-7, 8-15, 0-7 + 16 bytes, 8-15 + 16 bytes this is mma_s8's a.
ES_DEVICE void load_matrix(u32 (&a)[4], const void* row ES_CALLER) {
#ifdef __CUDA_ARCH__
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
#else
    shim::load_matrix(a, row, file, line);
#endif
}

// Two int8 in bytes 0 and 1, the low half of `rest` in bytes 2 and 3; saturates to -128 .. 127.
ES_DEVICE u32 pack_two(i32 low, i32 high, u32 rest) {
#ifdef __CUDA_ARCH__
    u32 packed;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(high), "r"(low), "r"(rest));
    return packed;
#else
    return (u32)(u8)max(-128, min(low, 127)) | (u32)(u8)max(-128, min(high, 127)) << 8 | rest << 16;
#endif
}

// Four values, the first in byte 0: pack4 of what fits, clip4 with c, which saturates to -127 .. 127.
ES_DEVICE u32 pack4(i32 a, i32 b, i32 c, i32 d) { return pack_two(a, b, pack_two(c, d, 0)); }
ES_DEVICE u32 clip4(i32 a, i32 b, i32 c, i32 d) {
    return pack4(max(a, -127), max(b, -127), max(c, -127), max(d, -127));
}

// Eight bytes of noise: read once a byte of text, so they stay out of L1, which holds the weights.
ES_DEVICE uint2 load_noise8(const i8* from) {
#ifdef __CUDA_ARCH__
    uint2 value;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
    return value;
#else
    return *(const uint2*)from;
#endif
}

ES_DEVICE u32 load_noise4(const i8* from) {
#ifdef __CUDA_ARCH__
    u32 value;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
#else
    return *(const u32*)from;
#endif
}

// Brings a line to L2 ahead of its use.
ES_DEVICE void prefetch(const void* line) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
#else
    shim::touch(line);
#endif
}

// Hides where a value comes from, so that what is computed from it is not kept in registers across a loop.
ES_DEVICE void opaque(i32& value) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(value));
#else
    (void)value;
#endif
}

// The tests' check of the launcher's arithmetic: what a block carves out of its shared memory is what it was given.
ES_DEVICE void check_shared(i64 used) {
#ifndef __CUDA_ARCH__
    shim::check_shared(used);
#endif
}

// Sum over the warp modulo 2^32, in every lane.
ES_DEVICE i32 warp_sum(i32 value ES_CALLER) { return __reduce_add_sync(FULL_WARP, value ES_PASS_CALLER); }

// sum + the products of four pairs of int8. NVRTC 12.1 knows __dp4a only with headers.
ES_DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
#ifdef __CUDA_ARCH__
    i32 result;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
#else
    return shim::dot4(a, b, sum);
#endif
}

// Byte j as a signed number; j is a constant once loops are unrolled. Shifts and casts would make three instructions.
ES_DEVICE i32 byte_of(u32 word, int j) {
#ifdef __CUDA_ARCH__
    i32 value;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(value) : "r"(word), "r"(0x8880 + 0x1111 * j));
    return value;
#else
    return (i8)(word >> 8 * j);
#endif
}
ES_DEVICE i32 byte_of(uint2 words, int j) { return byte_of(j < 4 ? words.x : words.y, j & 3); }
ES_DEVICE i32 sign_of(i32 value) { return (value > 0) - (value < 0); }
ES_DEVICE i32 pad(i32 size, i32 multiple) { return (size + multiple - 1) / multiple * multiple; }

// ---- counters (specs/formats.md, Randomness) -----------------------------------------------------------------

enum Stream { kFactorA = 1, kFactorB = 2, kVectorU = 3, kVectorV = 4, kTernarySupport = 5, kTernarySign = 6 };

struct Key {
    u32 key0, key1, epoch;
};

// Philox4x32-10 of counter (block, place, unit, epoch); place = stream << 24 | tensor index.
ES_DEVICE uint4 philox(Key key, u32 block, u32 place, u32 unit) {
    uint4 w = {block, place, unit, key.epoch};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 product0 = (u64)w.x * 0xD2511F53u, product1 = (u64)w.z * 0xCD9E8D57u;
        w = {(u32)(product1 >> 32) ^ w.y ^ key.key0, (u32)product1, (u32)(product0 >> 32) ^ w.w ^ key.key1,
             (u32)product0};
        key.key0 += 0x9E3779B9u, key.key1 += 0xBB67AE85u;
    }
    return w;
}

// The four bytes of a word through a table of 256 int8.
ES_DEVICE u32 through_table(const i8* table, u32 word) {
    return (u32)(u8)table[word & 255] | (u32)(u8)table[word >> 8 & 255] << 8 | (u32)(u8)table[word >> 16 & 255] << 16 |
           (u32)(u8)table[word >> 24] << 24;
}

// Entries 16 block .. 16 block + 15 of a stream of N(0, 16^2).
ES_DEVICE uint4 noise16(const i8* table, Key key, u32 block, u32 place, u32 unit) {
    const uint4 w = philox(key, block, place, unit);
    return {through_table(table, w.x), through_table(table, w.y), through_table(table, w.z), through_table(table, w.w)};
}

ES_DEVICE u32 word_of(const uint4& words, int j) {
    return j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w;
}

// The table is read at random: shared memory serves 32 banks, a __constant__ array one address at a time.
ES_DEVICE void copy_table(i8* shared, const i8* table) {
    for (u32 i = threadIdx.x; i < 256; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
}
