#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

namespace es {

Buffer allocate(size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!p) throw std::bad_alloc();
    return Buffer(static_cast<uint8_t*>(p));
}

void parallel(size_t items, int threads, const std::function<void(size_t, int)>& work) {
    std::atomic<size_t> next{0};
    auto loop = [&](int thread) {
        for (size_t item; (item = next.fetch_add(1)) < items;) work(item, thread);
    };
    std::vector<std::thread> helpers;
    const int useful = int(std::min(size_t(threads), items));
    try {
        for (int thread = 1; thread < useful; ++thread) helpers.emplace_back(loop, thread);
    } catch (const std::system_error&) {
        // No more threads to be had: the others do the work, with the same result.
    }
    loop(0);
    for (auto& helper : helpers) helper.join();
}

namespace {

// The instruction set's own tile, or smaller where that would leave a thread without work.
int groups_of(const Kernels& k, const Forward& f, int threads) {
    const size_t group = size_t(k.lanes) * (f.factors ? 1 : 2);
    const size_t groups = (f.units + group - 1) / group, share = (groups + size_t(threads) - 1) / size_t(threads);
    return int(std::min(size_t(k.groups), share));
}

}  // namespace

void run_forward(const Kernels& k, const Forward& f, int threads) {
    const int groups = groups_of(k, f, threads);
    const size_t tile = size_t(groups) * size_t(k.lanes) * (f.factors ? 1 : 2), tiles = (f.units + tile - 1) / tile;
    const size_t bytes = k.tile_bytes(f.shape, f.factors ? f.rank : 0, groups);
    std::vector<Buffer> scratch;
    for (int t = 0; t < int(std::min(size_t(threads), tiles)); ++t) scratch.push_back(allocate(bytes));
    parallel(tiles, threads,
             [&](size_t item, int thread) { k.forward_tile(f, item * tile, groups, scratch[size_t(thread)].get()); });
}

void run_noise(const Kernels& k, const std::vector<Tensor>& tensors, int rank, NoiseKey key, uint32_t first_unit,
               size_t units, int8_t* factors, size_t factor_stride, int16_t* products, size_t product_stride,
               int threads) {
    parallel(units, threads, [&](size_t unit, int) {
        k.noise_unit(tensors.data(), tensors.size(), rank, key, first_unit + uint32_t(unit),
                     factors + unit * factor_stride, products + unit * product_stride);
    });
}

void run_accumulate(const Kernels& k, const std::vector<Tensor>& tensors, Votes v, const int8_t* votes, size_t units,
                    int32_t* sums, int threads) {
    std::vector<uint32_t> plus, minus;
    for (size_t q = 0; q < units; ++q) {
        if (votes[q] > 0) plus.push_back(uint32_t(q));
        if (votes[q] < 0) minus.push_back(uint32_t(q));
    }
    v.plus = plus.data(), v.num_plus = plus.size(), v.minus = minus.data(), v.num_minus = minus.size();

    constexpr int64_t kSlab = 256;  // rows of one item: few enough to balance, enough to repay packing B
    struct Item {
        const Tensor* tensor;
        int64_t first, end;
    };
    std::vector<Item> items;
    size_t bytes = 0;
    for (const Tensor& tensor : tensors) {
        if (!tensor.out) items.push_back({&tensor, 0, 0});
        for (int64_t row = 0; row < tensor.out; row += kSlab)
            items.push_back({&tensor, row, std::min(row + kSlab, tensor.out)});
        bytes = std::max(bytes, k.accumulate_bytes(tensor));
    }
    std::vector<Buffer> scratch;
    for (int t = 0; t < threads; ++t) scratch.push_back(allocate(bytes));
    parallel(items.size(), threads, [&](size_t i, int thread) {
        k.accumulate_rows(v, *items[i].tensor, items[i].first, items[i].end, sums, scratch[size_t(thread)].get());
    });
}

int64_t run_apply(const Kernels& k, int8_t* parameters, const int32_t* sums, int64_t n, int64_t threshold,
                  int threads) {
    // 16 |Z| >= threshold; |Z| is at most 2^31.
    const int64_t least = threshold / 16 + (threshold % 16 != 0);
    if (least > int64_t{1} << 31) return 0;
    constexpr int64_t kPiece = 1 << 18;
    std::atomic<int64_t> moved{0};
    parallel(size_t((n + kPiece - 1) / kPiece), threads, [&](size_t item, int) {
        const int64_t first = int64_t(item) * kPiece;
        moved += k.apply(parameters + first, sums + first, std::min(kPiece, n - first), uint32_t(least));
    });
    return moved;
}

namespace {

uint64_t mix(uint64_t v) {  // the finaliser of splitmix64
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
    return v ^ (v >> 31);
}

uint64_t digest_of(const Tensor& tensor, const int8_t* parameters) {
    const int64_t size = std::max<int64_t>(tensor.out, 1) * tensor.in;
    uint64_t sum = 0;
    for (int64_t k = 0; 8 * k < size; ++k) {
        uint64_t word = 0;  // little-endian machines only: x86-64 and aarch64
        std::memcpy(&word, parameters + tensor.offset + 8 * k, size_t(std::min<int64_t>(8, size - 8 * k)));
        sum += mix(word ^ mix(uint64_t(tensor.index) << 40 | uint64_t(k)));
    }
    return sum;
}

}  // namespace

uint64_t digest(const std::vector<Tensor>& tensors, const int8_t* parameters, int threads) {
    std::atomic<uint64_t> sum{0};
    parallel(tensors.size(), threads, [&](size_t t, int) { sum += digest_of(tensors[t], parameters); });
    return sum;
}

}  // namespace es
