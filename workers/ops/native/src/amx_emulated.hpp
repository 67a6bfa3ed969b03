// The tile instructions in plain C++, from Intel's description of them: a test-only build (-DES_AMX_EMULATED) proves
// the AMX path exact on a machine without AMX. As on the hardware, tiles may not be used before configure().
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace es {
namespace {
namespace amx {

struct Tile {
    int8_t bytes[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured = false;

inline void configure() {
    memset(tiles, 0, sizeof tiles);
    configured = true;
}
inline void release() { configured = false; }

inline Tile& at(int tile) {
    if (!configured) abort();
    return tiles[tile];
}

template <int TILE>
inline void zero() {
    memset(&at(TILE), 0, sizeof(Tile));
}
template <int TILE>
inline void load(const void* from, int stride) {
    for (int row = 0; row < 16; ++row) memcpy(at(TILE).bytes[row], (const int8_t*)from + row * stride, 64);
}
template <int TILE>
inline void store(void* to, int stride) {
    for (int row = 0; row < 16; ++row) memcpy((int8_t*)to + row * stride, at(TILE).bytes[row], 64);
}
template <int C, int A, int B>
inline void dot() {
    for (int m = 0; m < 16; ++m) {
        int32_t row[16];
        memcpy(row, at(C).bytes[m], 64);
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n)
                for (int j = 0; j < 4; ++j) row[n] += at(A).bytes[m][4 * k + j] * at(B).bytes[k][4 * n + j];
        memcpy(at(C).bytes[m], row, 64);
    }
}

}  // namespace amx
}  // namespace
}  // namespace es
