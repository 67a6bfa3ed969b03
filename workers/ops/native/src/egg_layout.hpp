// Where the tensors of an EGG model and their noise lie (specs/formats.md, Canonical tensor order).
//
// Matrices are numbered 6 l + {Wf, Uf, Wh, Uh, mlp.0, mlp.1}, then the head; vectors 4 l + {ln1, bf, bh, ln2},
// then ln_out. The embedding is apart: it is looked up, not multiplied.
#pragma once

#include "kernels.hpp"

namespace es {
namespace {

constexpr int kVocabulary = 256;

enum LayerMatrix { kWf, kUf, kWh, kUh, kMlp0, kMlp1, kMatricesPerLayer };
enum LayerVector { kLn1, kBf, kBh, kLn2, kVectorsPerLayer };

struct Matrix {
    int out, in;
    size_t weights;  // offset in the parameters
    size_t factors;  // offset of A in a unit's factors at rank 1; B follows A
};

inline int num_matrices(const Shape& s) { return kMatricesPerLayer * s.layers + 1; }
inline int num_vectors(const Shape& s) { return kVectorsPerLayer * s.layers + 1; }

inline size_t layer_base(const Shape& s, int layer) {
    size_t d = size_t(s.width);
    return kVocabulary * d + size_t(layer) * (4 * d + 12 * d * d);
}

inline Matrix matrix_at(const Shape& s, int index) {
    size_t d = size_t(s.width), square = d * d;
    int layer = index / kMatricesPerLayer;
    size_t base = layer_base(s, layer), noise = kVocabulary + d + size_t(layer) * 18 * d;
    if (layer == s.layers) return {kVocabulary, s.width, base + d, noise};
    switch (index % kMatricesPerLayer) {
        case kWf:
            return {s.width, s.width, base + d, noise};
        case kUf:
            return {s.width, s.width, base + d + square, noise + 2 * d};
        case kWh:
            return {s.width, s.width, base + 2 * d + 2 * square, noise + 4 * d};
        case kUh:
            return {s.width, s.width, base + 2 * d + 3 * square, noise + 6 * d};
        case kMlp0:
            return {4 * s.width, s.width, base + 4 * d + 4 * square, noise + 8 * d};
        default:
            return {s.width, 4 * s.width, base + 4 * d + 8 * square, noise + 13 * d};
    }
}

// Offset of a vector in the parameters; its products lie at index * width.
inline size_t vector_at(const Shape& s, int index) {
    size_t d = size_t(s.width), square = d * d, base = layer_base(s, index / kVectorsPerLayer);
    switch (index % kVectorsPerLayer) {
        case kBf:
            return base + d + 2 * square;
        case kBh:
            return base + 2 * d + 4 * square;
        case kLn2:
            return base + 3 * d + 4 * square;
        default:
            return base;  // ln1, and ln_out of the layer after the last
    }
}

// Takes aligned pieces of one buffer; with a null base it only adds up their sizes.
struct Arena {
    uint8_t* base;
    size_t used = 0;

    template <class T>
    T* take(size_t count) {
        T* piece = base ? (T*)(base + used) : nullptr;
        used += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};

}  // namespace
}  // namespace es
