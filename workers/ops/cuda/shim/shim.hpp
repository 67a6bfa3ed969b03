// CUDA on the host: enough of it to run the kernels' text as it stands, slowly and suspiciously.
//
// A block's threads are fibers of one OS thread, switched at barriers and warp-wide operations only, so a run is
// reproducible; `order` permutes them, which shows missing barriers as wrong results. Errors, not hangs: barriers
// and warp operations that threads reach at different source lines, or that some never reach; shared memory beyond
// what was asked for (with AddressSanitizer every access). Blocks run on several OS threads.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__ static const
#define __restrict__ __restrict

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace shim {

struct Index {
    unsigned x, y, z;
};

// Where a thread waits: the source position, compared between threads.
struct Site {
    const char* what;
    const char* file;
    int line;
};

// A warp-wide operation: every lane's input to every lane's output.
using Exchange = void (*)(const void* const (&in)[32], void* const (&out)[32]);

struct Thread;
extern thread_local Thread* current;
extern thread_local Index block_index, block_size, grid_size;
const Index& thread_index();
unsigned char* shared();
void check_shared(long long used);
void barrier(Site site);
void exchange(Site site, const void* in, void* out, Exchange compute);
void touch(const void* line);

#define SHIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline int low_bits(unsigned word, int j) { return (signed char)(word >> 8 * j); }

inline int dot4(unsigned a, unsigned b, int sum) {
    for (int j = 0; j < 4; ++j) sum += low_bits(a, j) * low_bits(b, j);
    return sum;
}

struct MmaIn {
    int c[4];
    unsigned a[4], b[2];
};
void mma_exchange(const void* const (&in)[32], void* const (&out)[32]);
void matrix_exchange(const void* const (&in)[32], void* const (&out)[32]);

inline void mma_s8(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, SHIM_SITE) {
    const MmaIn in = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    exchange({"mma_s8", file, line}, &in, c, mma_exchange);
}

inline void load_matrix(unsigned (&a)[4], const void* row, SHIM_SITE) {
    exchange({"load_matrix", file, line}, &row, a, matrix_exchange);
}

template <class T>
struct Shuffled {
    T value;
    int from;
};

template <class T>
void shuffle_exchange(const void* const (&in)[32], void* const (&out)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
        const int from = static_cast<const Shuffled<T>*>(in[lane])->from;
        *static_cast<T*>(out[lane]) = static_cast<const Shuffled<T>*>(in[from])->value;
    }
}

void sum_exchange(const void* const (&in)[32], void* const (&out)[32]);
void ballot_exchange(const void* const (&in)[32], void* const (&out)[32]);
void no_exchange(const void* const (&in)[32], void* const (&out)[32]);

}  // namespace shim

#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

inline void __syncthreads(SHIM_SITE) { shim::barrier({"__syncthreads", file, line}); }
inline void __syncwarp(SHIM_SITE) { shim::exchange({"__syncwarp", file, line}, nullptr, nullptr, shim::no_exchange); }

inline int __reduce_add_sync(unsigned, int value, SHIM_SITE) {
    int sum;
    shim::exchange({"__reduce_add_sync", file, line}, &value, &sum, shim::sum_exchange);
    return sum;
}
inline unsigned __ballot_sync(unsigned, bool value, SHIM_SITE) {
    unsigned mask;
    shim::exchange({"__ballot_sync", file, line}, &value, &mask, shim::ballot_exchange);
    return mask;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int step, SHIM_SITE) {
    const shim::Shuffled<T> in = {value, int(threadIdx.x & 31) ^ step};
    T out;
    shim::exchange({"__shfl_xor_sync", file, line}, &in, &out, shim::shuffle_exchange<T>);
    return out;
}

inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T atomicAdd(T* to, T value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
