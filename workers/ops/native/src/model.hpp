// The parameters in the form that the forward pass reads: weights in panels of kRows outputs, in the order of use.
#pragma once

#include "egg_layout.hpp"
#include "simd.hpp"

namespace es {
namespace {

// The packed model: embedding, vectors, then the panels of each matrix.
template <class I>
struct Model {
    int8_t* embedding;
    int8_t* vectors;
    uint8_t* panels;

    Model(const Shape& s, Arena& arena) {
        embedding = arena.take<int8_t>(size_t(kVocabulary) * size_t(s.width));
        vectors = arena.take<int8_t>(size_t(num_vectors(s)) * size_t(s.width));
        size_t bytes = 0;
        for (int m = 0; m < num_matrices(s); ++m) bytes += matrix_bytes(matrix_at(s, m));
        panels = arena.take<uint8_t>(bytes);
    }
    static size_t matrix_bytes(const Matrix& m) {
        return size_t((m.out + I::kRows - 1) / I::kRows) * I::panel_bytes(m.in);
    }
};

template <class I>
size_t model_bytes(const Shape& s) {
    Arena arena{nullptr};
    Model<I> model(s, arena);
    return arena.used + size_t(4 * s.width * I::kRows);  // and pack_model's scratch, the widest panel
}

// to[k / 4][row][k mod 4] = weights[row][k], the form that panels are packed from; rows beyond `rows` are zero.
template <class I>
void interleave_rows(const int8_t* weights, int rows, int in, int8_t* to) {
    if (rows < I::kRows) memset(to, 0, size_t(I::kRows) * size_t(in));
    for (int row = 0; row < rows; ++row)
        for (int k = 0; k < in; k += 4)
            memcpy(to + k * I::kRows + 4 * row, weights + size_t(row) * size_t(in) + size_t(k), 4);
}

template <class I>
void pack_model(const Shape& s, const int8_t* parameters, uint8_t* packed) {
    Arena arena{packed};
    Model<I> model(s, arena);
    size_t d = size_t(s.width);
    memcpy(model.embedding, parameters, kVocabulary * d);
    for (int v = 0; v < num_vectors(s); ++v) memcpy(model.vectors + size_t(v) * d, parameters + vector_at(s, v), d);
    uint8_t* panel = model.panels;
    int8_t* quads = (int8_t*)(packed + model_bytes<I>(s) - size_t(4 * s.width * I::kRows));  // see model_bytes
    for (int m = 0; m < num_matrices(s); ++m) {
        Matrix matrix = matrix_at(s, m);
        for (int row = 0; row < matrix.out; row += I::kRows, panel += I::panel_bytes(matrix.in)) {
            const int present = matrix.out - row < I::kRows ? matrix.out - row : I::kRows;
            interleave_rows<I>(parameters + matrix.weights + size_t(row) * size_t(matrix.in), present, matrix.in,
                               quads);
            I::pack_panel(quads, matrix.in, panel);
        }
    }
}

}  // namespace
}  // namespace es
