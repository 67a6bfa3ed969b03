// Splits work over threads and owns scratch memory; instruction sets never allocate.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.hpp"

namespace es {

struct FreeAligned {
    void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<uint8_t[], FreeAligned>;

// `bytes` of memory aligned to a cache line; throws std::bad_alloc.
Buffer allocate(size_t bytes);

// Calls work(item, thread) for every item 0 .. items - 1, on up to `threads` threads, each taking the next free one.
void parallel(size_t items, int threads, const std::function<void(size_t item, int thread)>& work);

void run_forward(const Kernels&, const Forward&, int threads);
void run_noise(const Kernels&, const std::vector<Tensor>&, int rank, NoiseKey, uint32_t first_unit, size_t units,
               int8_t* factors, size_t factor_stride, int16_t* products, size_t product_stride, int threads);
void run_accumulate(const Kernels&, const std::vector<Tensor>&, Votes, const int8_t* votes, size_t units, int32_t* sums,
                    int threads);
int64_t run_apply(const Kernels&, int8_t* parameters, const int32_t* sums, int64_t n, int64_t threshold, int threads);
uint64_t digest(const std::vector<Tensor>&, const int8_t* parameters, int threads);

}  // namespace es
