// Vectors of W int32 lanes on compiler vector types, and what the kernels do with them alike on every
// instruction set. Each simd_*.hpp adds the few operations that need its own instructions.
//
// A lane is a member. Four consecutive activations of W members are one "quad": 4 W bytes, byte 4 l + j being
// activation j of lane l. That is what 4-way dot-product instructions take, and what AMX wants of its B tiles.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.hpp"

#define ES_INLINE inline __attribute__((always_inline))

namespace es {
namespace {

template <int W>
struct Vectors {
    typedef int32_t I32 __attribute__((vector_size(4 * W)));
    typedef uint32_t U32 __attribute__((vector_size(4 * W)));
    typedef float F32 __attribute__((vector_size(4 * W)));
    typedef int16_t I16 __attribute__((vector_size(4 * W)));
    typedef uint16_t U16 __attribute__((vector_size(4 * W)));
    typedef int8_t Quad __attribute__((vector_size(4 * W)));
    typedef int8_t I8 __attribute__((vector_size(W)));
};

// floor(a / d) for |a| <= 127 d, d = isqrt(in) in 4 .. 64, as (multiplier (2 a + 1)) >> shift: 2 a + 1 keeps
// the quotient 1 / (2 d) away from every integer, which is more than the rounding of the multiplier can move it.
struct Divisor {
    int bound;       // 127 d
    int multiplier;  // round(2^(shift - 1) / d), in [2^14, 2^15)
    int shift;       // at least 16
    int power;       // 16 d = 2^power, or 0 where it is not a power of two
};

ES_INLINE Divisor divisor_for(int in) {
    int root = 0;
    while ((root + 1) * (root + 1) <= in) ++root;
    int power = 14;
    while ((int64_t{1} << power) * 2 + root < int64_t{2} * root << 14) ++power;
    const bool exact = (root & (root - 1)) == 0;
    return {127 * root, int(((int64_t{1} << power) * 2 + root) / (2 * root)), power + 1, exact ? power - 10 : 0};
}

template <int W>
struct Generic : Vectors<W> {
    using V = Vectors<W>;
    using I32 = typename V::I32;
    using I16 = typename V::I16;
    using F32 = typename V::F32;
    using Quad = typename V::Quad;
    using I8 = typename V::I8;

    static ES_INLINE I32 broadcast(int32_t value) { return I32{} + value; }

    template <class T>
    static ES_INLINE T least(T a, T b) {
        return a < b ? a : b;
    }
    template <class T>
    static ES_INLINE T greatest(T a, T b) {
        return a > b ? a : b;
    }

    // Sign-extended activations 0 and 2, and 1 and 3, of every lane.
    static ES_INLINE I16 even(Quad quad) { return ((I16)quad << 8) >> 8; }
    static ES_INLINE I16 odd(Quad quad) { return (I16)quad >> 8; }
    // The reverse, of values that fit a byte.
    static ES_INLINE Quad join(I16 even, I16 odd) { return (Quad)((even & 0xff) | (odd << 8)); }
    static ES_INLINE I32 low(I16 pair) { return ((I32)pair << 16) >> 16; }
    static ES_INLINE I32 high(I16 pair) { return (I32)pair >> 16; }

    static ES_INLINE I16 clip(I16 values) {
        return greatest(least(values, I16{} + int16_t{127}), I16{} - int16_t{127});
    }
    static ES_INLINE I32 clip(I32 values) { return greatest(least(values, I32{} + 127), I32{} - 127); }

    static ES_INLINE I32 widen(const int8_t* bytes) {
        I8 narrow;
        memcpy(&narrow, bytes, W);
        return __builtin_convertvector(narrow, I32);
    }

    // Four vectors of already clipped int32 to a quad.
    static ES_INLINE Quad join(I32 a, I32 b, I32 c, I32 d) {
        return (Quad)((a & 0xff) | ((b & 0xff) << 8) | ((c & 0xff) << 16) | (d << 24));
    }
    static ES_INLINE Quad clip_quad(I32 a, I32 b, I32 c, I32 d) { return join(clip(a), clip(b), clip(c), clip(d)); }

    static ES_INLINE I32 divide_clip(I32 acc, const Divisor& divisor) {
        I32 bound = broadcast(divisor.bound);
        I32 value = greatest(least(acc >> 4, bound), -bound);
        return ((2 * value + 1) * divisor.multiplier) >> divisor.shift;
    }
    // c(acc div (16 d)) of four outputs.
    static ES_INLINE Quad divide_quad(I32 a, I32 b, I32 c, I32 d, const Divisor& divisor) {
        return join(divide_clip(a, divisor), divide_clip(b, divisor), divide_clip(c, divisor), divide_clip(d, divisor));
    }

    // (a b) >> 16 of int16.
    static ES_INLINE I16 multiply_high(I16 a, I16 b) {
        I32 lows = low(a) * low(b), highs = high(a) * high(b);
        return (I16)(((lows >> 16) & 0xffff) | (highs & broadcast(int32_t(0xffff0000))));
    }

    static ES_INLINE F32 to_float(I32 values) { return __builtin_convertvector(values, F32); }
    static ES_INLINE I32 floor(F32 values) {
        I32 toward_zero = __builtin_convertvector(values, I32);
        return toward_zero + (to_float(toward_zero) > values);  // a true comparison is -1
    }

    // c((x w) div m), m >= 1. |x w| < 2^15 and m <= 128: adding one half keeps the quotient further from every
    // integer than float32 can err.
    struct Quotient {
        F32 reciprocal, half_step;
    };
    static ES_INLINE Quotient quotient_by(I32 m) {
        const F32 reciprocal = 1.0f / to_float(m);
        return {reciprocal, 0.5f * reciprocal};
    }
    static ES_INLINE F32 scaled(I32 product, const Quotient& by) {
        return to_float(product) * by.reciprocal + by.half_step;
    }

    // 16 fractional-exponent steps: X[i] = mantissa[i mod 16] >> (15 - i div 16) (see egg_step.hpp).
    static ES_INLINE I32 exp2(const int32_t* mantissa, I32 z) {
        I32 picked;
        for (int l = 0; l < W; ++l) picked[l] = mantissa[z[l] & 15];
        return picked >> (15 - (z >> 4));
    }

    // 64-bit products of W uint32 with one multiplier, split in halves.
    static ES_INLINE void multiply_wide(typename V::U32 a, uint32_t m, typename V::U32& high, typename V::U32& low) {
        for (int l = 0; l < W; ++l) {
            uint64_t product = uint64_t{a[l]} * m;
            low[l] = uint32_t(product);
            high[l] = uint32_t(product >> 32);
        }
    }

    // Words 0 .. 3 of W counters, word-major, to bytes in stream order through the table. Lane l is counter
    // counter_of_lane(l).
    static ES_INLINE int counter_of_lane(int lane) { return lane; }
    static ES_INLINE void store_entries(const typename V::U32* words, int8_t* out) {
        for (int l = 0; l < W; ++l)
            for (int w = 0; w < 4; ++w)
                for (int b = 0; b < 4; ++b) out[16 * l + 4 * w + b] = kNoiseTable[(words[w][l] >> (8 * b)) & 0xff];
    }
};

// c((x w) div m) of a quad with the floor() and clip_quad() of instruction set I.
template <class I, class Quad, class Quotient>
ES_INLINE Quad norm_with_floats(Quad x, Quad w, const Quotient& by) {
    const auto even = I::even(x) * I::even(w), odd = I::odd(x) * I::odd(w);
    return I::clip_quad(I::floor(I::scaled(I::low(even), by)), I::floor(I::scaled(I::low(odd), by)),
                        I::floor(I::scaled(I::high(even), by)), I::floor(I::scaled(I::high(odd), by)));
}

}  // namespace
}  // namespace es
