// The table of kernels that each instruction set fills in, and the plain structs that cross it.
//
// Only plain pointers and scalars cross this border: every isa_*.cpp is compiled with its own -m flags, and
// an inline function of the standard library that two of them share could be linked in the wrong version.
#pragma once

#include <cstddef>
#include <cstdint>

namespace es {

// Sizes of an EGG model; the noise term is shifted right by 4 + sigma_shift (specs/egg.md).
struct Shape {
    int width;
    int layers;
    int sigma_shift;
};

// One tensor of any model, in canonical order. A vector has out = 0 and in = d. Noise offsets are those of
// Layout.noise_slots: `first` and `second` in a unit's factors, or `first` in its products.
struct Tensor {
    int64_t out, in, offset, first, second, index;
};

// A forward pass over `units` pairs (factors given) or rows (factors null). Member m = 2q + sign, or row m.
struct Forward {
    Shape shape;
    const uint8_t* model;     // packed by pack_model of the same instruction set
    const int8_t* factors;    // (units, factor_stride), or null: unperturbed
    const int16_t* products;  // (units, product_stride)
    size_t factor_stride;
    size_t product_stride;
    int rank;
    const uint8_t* rows;  // (S, row_bytes)
    size_t row_bytes;
    const int32_t* row_of_pair;  // (units), or null: member m reads row m
    int64_t steps;               // bytes to run
    int64_t burn_in;             // of which the first are not scored
    int8_t* state;               // (members, layers, width), overwritten, or null: starts at zero and is dropped
    int32_t* scores;             // (members), or null: no targets are read
    int8_t* logits;              // (members, 256) after the last byte, or null
    size_t units;
};

// What all entries of one generation share in the Philox counter (specs/formats.md).
struct NoiseKey {
    uint32_t key0, key1, epoch;
};

// Votes split into the units that count +1 and those that count -1; units that abstain are in neither.
struct Votes {
    const int8_t* factors;
    const int16_t* products;
    size_t factor_stride;
    size_t product_stride;
    int rank;
    bool sign_noise;
    const uint32_t* plus;
    size_t num_plus;
    const uint32_t* minus;
    size_t num_minus;
};

struct Kernels {
    const char* name;
    int lanes;   // pairs of one group: a group runs its even and its odd members side by side
    int groups;  // of one tile, where there are enough members

    size_t (*model_bytes)(const Shape&);
    void (*pack_model)(const Shape&, const int8_t* parameters, uint8_t* packed);

    size_t (*tile_bytes)(const Shape&, int rank, int groups);
    // Units first .. first + groups * (lanes, or 2 lanes if unperturbed) - 1, those that exist.
    void (*forward_tile)(const Forward&, size_t first, int groups, uint8_t* scratch);

    // Noise of one unit: factors and products as Layout.noise_slots lays them out.
    void (*noise_unit)(const Tensor*, size_t tensors, int rank, NoiseKey, uint32_t unit, int8_t* factors,
                       int16_t* products);

    size_t (*accumulate_bytes)(const Tensor&);
    // sums[first_row .. end_row) of one matrix += Z; all of a vector when it is one.
    void (*accumulate_rows)(const Votes&, const Tensor&, int64_t first_row, int64_t end_row, int32_t* sums,
                            uint8_t* scratch);

    // Moves parameters [0, n) whose |Z| reaches `least`; returns how many.
    int64_t (*apply)(int8_t* parameters, const int32_t* sums, int64_t n, uint32_t least);

    // Dot-product throughput from registers: runs `rounds` rounds, returns multiply-adds done (0: none to measure).
    int64_t (*peak)(int64_t rounds);
};

extern const int8_t kNoiseTable[256];  // specs/formats.md, Randomness

}  // namespace es
