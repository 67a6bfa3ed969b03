// The AMX instructions that the kernels use. All tiles are 16 rows of 64 bytes.
//
// Written out: GCC 12's intrinsics take literal tile numbers only and do not say which memory they read and write.
#pragma once

#include <cstdint>
#include <cstring>

namespace es {
namespace {
namespace amx {

// Other libraries in the process release the tile state, so this runs on every entry.
inline void configure() {
    struct alignas(64) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) config.bytes[tile] = 64, config.rows[tile] = 16;
    asm volatile("ldtilecfg %0" ::"m"(config));
}
inline void release() { asm volatile("tilerelease"); }

template <int TILE>
inline __attribute__((always_inline)) void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
inline __attribute__((always_inline)) void load(const void* from, long stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}
// C[m][n] += sum over k, j of A[m][4 k + j] B[k][4 n + j], signed.
template <int C, int A, int B>
inline __attribute__((always_inline)) void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int TILE>
inline __attribute__((always_inline)) void store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

}  // namespace amx
}  // namespace
}  // namespace es
