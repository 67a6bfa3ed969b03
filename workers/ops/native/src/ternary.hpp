// Ternary perturbations rebuilt from counters (es_service/ternary.py is the definition). Scalar: one non-zero takes a few
// counters, and a generation has thousands of them, not millions; Bernoulli supports are dense and split over threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace es {

enum Support : int { kBernoulli = 0, kExact = 1, kColumns = 2 };

// The columns of one tensor of `rows` x `columns` weights from `offset` on; `first` columns come before them.
struct Columns {
    int64_t first, columns, rows, offset;
};

struct Ternary {
    int support;
    NoiseKey key;
    int64_t size;      // weights
    int64_t places;    // what pi permutes: weights or columns
    int64_t nonzeros;  // k, for exact and columns
    uint64_t bound;    // for Bernoulli: a word below it is a non-zero
    std::vector<Columns> columns;
};

// positions[n], signs[n] of non-zeros first .. first + count - 1 in order, for exact and columns.
void ternary_nonzeros(const Ternary&, int64_t first, int64_t count, int64_t* positions, int8_t* signs, int threads);

// The weights of one Bernoulli perturbation, ascending, with their signs.
void ternary_chosen(const Ternary&, uint32_t unit, std::vector<int64_t>& positions, std::vector<int8_t>& signs);

// weights := clamp(weights + clamp(sum of vote x perturbation)), clamp to -1 .. 1.
void ternary_step(const Ternary&, const int8_t* votes, int64_t units, int8_t* weights, int threads);

}  // namespace es
