#include "ternary.hpp"

#include <algorithm>

#include "driver.hpp"

namespace es {

namespace {

enum : uint32_t { kSupportStream = 5, kSignStream = 6, kRounds = 4 };
constexpr int64_t kPiece = 4096;  // non-zeros, or weights, of one item of work

struct Words {
    uint32_t word[4];
};

// Philox4x32-10 of counter (block, place, unit, epoch).
Words philox(NoiseKey key, uint32_t block, uint32_t place, uint32_t unit) {
    uint32_t w[4] = {block, place, unit, key.epoch};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(w[0]) * 0xD2511F53u, b = uint64_t(w[2]) * 0xCD9E8D57u;
        w[0] = uint32_t(b >> 32) ^ w[1] ^ key.key0, w[1] = uint32_t(b);
        w[2] = uint32_t(a >> 32) ^ w[3] ^ key.key1, w[3] = uint32_t(a);
        key.key0 += 0x9E3779B9u, key.key1 += 0xBB67AE85u;
    }
    return {{w[0], w[1], w[2], w[3]}};
}

// The keyed permutation of [0, size): a Feistel network with cycle walking.
struct Permutation {
    NoiseKey key;
    int64_t size;
    uint32_t half_bits;

    Permutation(NoiseKey noise_key, int64_t n) : key(noise_key), size(n), half_bits(1) {
        while (int64_t(1) << (2 * half_bits) < n) ++half_bits;
    }
    int64_t operator()(int64_t value) const {
        do {
            uint32_t left = uint32_t(value >> half_bits), right = uint32_t(value & ((int64_t(1) << half_bits) - 1));
            for (uint32_t round = 0; round < kRounds; ++round) {
                const uint32_t word = philox(key, 0, kSupportStream << 24 | round, right).word[0];
                const uint32_t next = left ^ (word & uint32_t((uint64_t(1) << half_bits) - 1));
                left = right, right = next;
            }
            value = int64_t(left) << half_bits | right;
        } while (value >= size);
        return value;
    }
};

int8_t sign_of(NoiseKey key, int64_t weight) {
    const Words words = philox(key, uint32_t(weight / 16), kSignStream << 24, 0);
    const uint32_t byte = words.word[weight % 16 / 4] >> (8 * (weight % 4));
    return (byte & 1) ? 1 : -1;
}

// The weight of a column that the perturbation of that column touches.
int64_t in_column(const Ternary& t, int64_t column) {
    const auto after = std::upper_bound(t.columns.begin(), t.columns.end(), column,
                                        [](int64_t c, const Columns& tensor) { return c < tensor.first; });
    const Columns& tensor = *(after - 1);
    const uint32_t word = philox(t.key, 0, kSupportStream << 24 | kRounds, uint32_t(column)).word[0];
    const int64_t row = int64_t(uint64_t(word) * uint64_t(tensor.rows) >> 32);
    return tensor.offset + row * tensor.columns + (column - tensor.first);
}

int64_t position_of(const Ternary& t, const Permutation& permutation, int64_t n) {
    const int64_t place = permutation(n);
    return t.support == kColumns ? in_column(t, place) : place;
}

int8_t clamp(int value) { return int8_t(std::max(-1, std::min(1, value))); }

// Weights first .. end - 1; first is a multiple of 4.
void bernoulli_step(const Ternary& t, const int8_t* votes, int64_t units, int64_t first, int64_t end, int8_t* weights) {
    int32_t sums[kPiece] = {};
    for (int64_t unit = 0; unit < units; ++unit) {
        if (!votes[unit]) continue;
        for (int64_t j = first; j < end; j += 4) {
            const Words words = philox(t.key, uint32_t(j / 4), kSupportStream << 24, uint32_t(unit));
            for (int64_t n = 0; n < 4; ++n) sums[j - first + n] += words.word[n] < t.bound ? votes[unit] : 0;
        }
    }
    for (int64_t j = first; j < end; ++j)
        if (sums[j - first]) weights[j] = clamp(weights[j] + clamp(sums[j - first] * sign_of(t.key, j)));
}

int64_t pieces(int64_t count) { return (count + kPiece - 1) / kPiece; }

}  // namespace

void ternary_nonzeros(const Ternary& t, int64_t first, int64_t count, int64_t* positions, int8_t* signs, int threads) {
    const Permutation permutation(t.key, t.places);
    parallel(size_t(pieces(count)), threads, [&](size_t item, int) {
        const int64_t begin = int64_t(item) * kPiece, end = std::min(count, begin + kPiece);
        for (int64_t n = begin; n < end; ++n) {
            positions[n] = position_of(t, permutation, first + n);
            signs[n] = sign_of(t.key, positions[n]);
        }
    });
}

void ternary_chosen(const Ternary& t, uint32_t unit, std::vector<int64_t>& positions, std::vector<int8_t>& signs) {
    for (int64_t j = 0; j < t.size; j += 4) {
        const Words words = philox(t.key, uint32_t(j / 4), kSupportStream << 24, unit);
        for (int64_t n = 0; n < 4 && j + n < t.size; ++n)
            if (words.word[n] < t.bound) positions.push_back(j + n), signs.push_back(sign_of(t.key, j + n));
    }
}

void ternary_step(const Ternary& t, const int8_t* votes, int64_t units, int8_t* weights, int threads) {
    if (t.support == kBernoulli) {
        parallel(size_t(pieces(t.size)), threads, [&](size_t item, int) {
            const int64_t first = int64_t(item) * kPiece;
            bernoulli_step(t, votes, units, first, std::min(t.size, first + kPiece), weights);
        });
        return;
    }
    // No two non-zeros of a generation share a weight, so threads never meet.
    const Permutation permutation(t.key, t.places);
    const int64_t count = units * t.nonzeros;
    parallel(size_t(pieces(count)), threads, [&](size_t item, int) {
        const int64_t first = int64_t(item) * kPiece, end = std::min(count, first + kPiece);
        for (int64_t n = first; n < end; ++n) {
            const int8_t vote = votes[n / t.nonzeros];
            if (!vote) continue;
            const int64_t j = position_of(t, permutation, n);
            weights[j] = clamp(weights[j] + vote * sign_of(t.key, j));
        }
    });
}

}  // namespace es
