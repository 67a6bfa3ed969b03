// Noise from counters: Philox4x32-10 (Salmon et al., SC 2011), W counters at a time (specs/formats.md, Randomness).
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace es {
namespace {

enum Stream : uint32_t { kFactorA = 1, kFactorB = 2, kVectorU = 3, kVectorV = 4 };

template <class I>
struct Philox {
    using U32 = typename I::U32;
    static constexpr int64_t kBatch = 16 * I::W;  // entries of one call

    NoiseKey key;
    uint32_t unit;
    U32 lane_counter;

    Philox(NoiseKey noise_key, uint32_t noise_unit) : key(noise_key), unit(noise_unit), lane_counter{} {
        for (int lane = 0; lane < I::W; ++lane) lane_counter[lane] = uint32_t(I::counter_of_lane(lane));
    }

    // Entries 16 block .. 16 block + kBatch - 1.
    ES_INLINE void batch(uint32_t place, uint32_t block, int8_t* out) const {
        U32 words[4] = {lane_counter + block, U32{} + place, U32{} + unit, U32{} + key.epoch};
        uint32_t key0 = key.key0, key1 = key.key1;
        for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
            U32 high0, low0, high1, low1;
            I::multiply_wide(words[0], 0xD2511F53u, high0, low0);
            I::multiply_wide(words[2], 0xCD9E8D57u, high1, low1);
            words[0] = high1 ^ words[1] ^ key0, words[1] = low1;
            words[2] = high0 ^ words[3] ^ key1, words[3] = low0;
        }
        I::store_entries(words, out);
    }

    void fill(Stream stream, int64_t tensor, int64_t size, int8_t* out) const {
        const uint32_t place = uint32_t(stream) << 24 | uint32_t(tensor);
        int64_t done = 0;
        for (; done + kBatch <= size; done += kBatch) batch(place, uint32_t(done / 16), out + done);
        if (done == size) return;
        alignas(64) int8_t rest[kBatch];
        batch(place, uint32_t(done / 16), rest);
        memcpy(out + done, rest, size_t(size - done));
    }
};

template <class I>
void fill_products(const Philox<I>& philox, const Tensor& tensor, int16_t* out) {
    constexpr int64_t kPiece = Philox<I>::kBatch;
    alignas(64) int8_t u[kPiece], v[kPiece];
    for (int64_t done = 0; done < tensor.in; done += kPiece) {
        const uint32_t block = uint32_t(done / 16), index = uint32_t(tensor.index);
        philox.batch(uint32_t(kVectorU) << 24 | index, block, u);
        philox.batch(uint32_t(kVectorV) << 24 | index, block, v);
        const int64_t count = tensor.in - done < kPiece ? tensor.in - done : kPiece;
        for (int64_t j = 0; j < count; ++j) out[done + j] = int16_t(u[j] * v[j]);
    }
}

template <class I>
void noise_unit(const Tensor* tensors, size_t count, int rank, NoiseKey key, uint32_t unit, int8_t* factors,
                int16_t* products) {
    const Philox<I> philox(key, unit);
    for (size_t t = 0; t < count; ++t) {
        const Tensor& tensor = tensors[t];
        if (tensor.out) {
            philox.fill(kFactorA, tensor.index, rank * tensor.out, factors + tensor.first);
            philox.fill(kFactorB, tensor.index, rank * tensor.in, factors + tensor.second);
        } else {
            fill_products(philox, tensor, products + tensor.first);
        }
    }
}

}  // namespace
}  // namespace es
