// Where the parts of an EGG model lie: parameters (canonical order, specs/formats.md), noise, packed weights.

enum { kVocabulary = 256 };
enum Which { kWf, kUf, kWh, kUh, kMlp0, kMlp1, kHead };  // matrices of a layer; kHead stands alone
enum Vector { kLn1, kBf, kBh, kLn2 };                    // vectors of a layer; ln_out follows the last layer

struct Shape {
    i32 width, layers, rank;
};

struct Matrix {
    i32 out, in;
    i64 parameters;  // offset in the flat parameters
    i32 factors;     // offset of A in a unit's factors; B follows A
    i32 packed;      // offset in the packed weights, in blocks of 1 KB
};

// Packed weights: for each group of 32 outputs and each 32 inputs, 1 KB in the order in which a warp's lanes take it
// as four b operands of mma_s8 (two 16-byte loads a lane). Output 8t + 2j + i of a group is column 2t + i of operand
// j, so that a lane's results are 8 consecutive outputs of a member. Missing outputs and inputs are zeros.
ES_DEVICE i32 packed_blocks(i32 out, i32 in) { return (out + 31) / 32 * ((in + 31) / 32); }

ES_DEVICE i64 vector_parameters(Shape s, i32 layer, i32 which) {
    const i64 d = s.width, begin = kVocabulary * d + layer * (4 * d + 12 * d * d);
    return begin + which * d + (which == kLn1 ? 0 : which == kBf ? 2 : 4) * d * d;
}

ES_DEVICE Matrix matrix_of(Shape s, i32 layer, i32 which) {
    const i32 d = s.width;
    const i32 square = packed_blocks(d, d), up = packed_blocks(4 * d, d), down = packed_blocks(d, 4 * d);
    const i64 begin = vector_parameters(s, layer, kLn1);
    const i32 factors = s.rank * (kVocabulary + d + layer * 18 * d);
    const i32 packed = layer * (4 * square + up + down);
    const i64 dd = (i64)d * d;
    if (which == kHead) return {kVocabulary, d, begin + d, factors, packed};
    if (which == kMlp0) return {4 * d, d, begin + 4 * d + 4 * dd, factors + 8 * d * s.rank, packed + 4 * square};
    if (which == kMlp1) return {d, 4 * d, begin + 4 * d + 8 * dd, factors + 13 * d * s.rank, packed + 4 * square + up};
    const i64 parameters = begin + d + (which >= kWh ? d : 0) + which * dd;
    return {d, d, parameters, factors + which * 2 * d * s.rank, packed + which * square};
}
