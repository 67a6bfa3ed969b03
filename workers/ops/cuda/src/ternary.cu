// Ternary perturbations for noise_step, rebuilt from counters. Definition in NumPy: es_service/ternary.py.
//
// exact: perturbation i touches the weights pi(i k) .. pi(i k + k - 1), pi a keyed permutation of [0, P): a 4-round
// balanced Feistel network with cycle walking. columns: pi permutes the columns of all matrices, and a column has one
// non-zero, in a row from a counter of its own. In both no weight is touched twice, so the step is a scatter without
// atomics, and pi's inverse gives any slice of it alone. bernoulli: every weight asks every perturbation.

enum { kRounds = 4 };

struct Permutation {
    Key key;
    u32 half_bits;
    u64 size;

    ES_DEVICE u32 round(u32 number, u32 half) const {
        return philox(key, 0, (u32)kTernarySupport << 24 | number, half).x & (u32)((1ull << half_bits) - 1);
    }
    ES_DEVICE u64 once(u64 value) const {
        u32 left = (u32)(value >> half_bits), right = (u32)(value & ((1ull << half_bits) - 1));
        for (u32 number = 0; number < kRounds; ++number) {
            const u32 next = left ^ round(number, right);
            left = right, right = next;
        }
        return (u64)left << half_bits | right;
    }
    ES_DEVICE u64 back_once(u64 value) const {
        u32 left = (u32)(value >> half_bits), right = (u32)(value & ((1ull << half_bits) - 1));
        for (u32 number = kRounds; number-- > 0;) {
            const u32 before = right ^ round(number, left);
            right = left, left = before;
        }
        return (u64)left << half_bits | right;
    }
    // Walks the cycle of the power of four around `size` until it is back inside: under 4 steps on average.
    ES_DEVICE u64 operator()(u64 value) const {
        do value = once(value);
        while (value >= size);
        return value;
    }
    ES_DEVICE u64 inverse(u64 value) const {
        do value = back_once(value);
        while (value >= size);
        return value;
    }
};

// What pi's values are: weights, or columns numbered through all tensors. A vector is one column.
struct TernaryPlaces {
    const i64* tensors;  // (count, 4): first weight, rows, columns, columns of the tensors before; null: weights
    i32 count;
    Key key;

    // The last tensor whose `field` is at most `value`.
    ES_DEVICE const i64* find(i32 field, i64 value) const {
        i32 low = 0, high = count;
        while (high - low > 1) {
            const i32 middle = (low + high) / 2;
            if (tensors[4 * middle + field] <= value) low = middle;
            else
                high = middle;
        }
        return tensors + 4 * low;
    }
    // The weight that a perturbation with this place touches.
    ES_DEVICE i64 weight(i64 place) const {
        if (!tensors) return place;
        const i64* t = find(3, place);
        const u64 word = philox(key, 0, (u32)kTernarySupport << 24 | kRounds, (u32)place).x;
        return t[0] + (i64)(word * (u64)t[1] >> 32) * t[2] + (place - t[3]);
    }
    // The place that a weight is in.
    ES_DEVICE i64 of(i64 weight) const {
        if (!tensors) return weight;
        const i64* t = find(0, weight);
        return t[3] + (weight - t[0]) % t[2];
    }
};

// Bit 0 of entry j of the sign stream: 1 is +1, 0 is -1.
ES_DEVICE i32 ternary_sign(Key key, u64 j) {
    const uint4 words = philox(key, (u32)(j / 16), (u32)kTernarySign << 24, 0);
    return (byte_of(word_of(words, (int)(j % 16) / 4), (int)(j % 4)) & 1) ? 1 : -1;
}

#define ES_PLACES                                       \
    const Key key = {key0, key1, epoch};                \
    const Permutation pi = {key, half_bits, (u64)size}; \
    const TernaryPlaces places = {tensors, tensor_count, key}

// positions[n] = the weight at place pi(first + n), signs[n] = its sign, n < count: supports, in order.
ES_KERNEL __launch_bounds__(128) ternary_support(i64* __restrict__ positions,  // (count,), written
                                                 i8* __restrict__ signs,       // (count,), written
                                                 i64 first, i64 count, const i64* __restrict__ tensors,
                                                 i32 tensor_count, i64 size, u32 half_bits, u32 key0, u32 key1,
                                                 u32 epoch) {
    ES_PLACES;
    for (i64 n = (i64)blockIdx.x * blockDim.x + threadIdx.x; n < count; n += (i64)gridDim.x * blockDim.x) {
        const i64 position = places.weight((i64)pi((u64)(first + n)));
        positions[n] = position;
        signs[n] = (i8)ternary_sign(key, (u64)position);
    }
}

// weights[j] := clamp_T(weight + vote of n div k x sign), j the weight at place pi(n), n < units k.
ES_KERNEL __launch_bounds__(128) ternary_step(i8* __restrict__ weights,      // (P,), values -1, 0, 1, +=
                                              const i8* __restrict__ votes,  // (units,)
                                              i64 units, i64 nonzeros, const i64* __restrict__ tensors,
                                              i32 tensor_count, i64 size, u32 half_bits, u32 key0, u32 key1,
                                              u32 epoch) {
    ES_PLACES;
    for (i64 n = (i64)blockIdx.x * blockDim.x + threadIdx.x; n < units * nonzeros; n += (i64)gridDim.x * blockDim.x) {
        const i32 vote = votes[n / nonzeros];
        if (!vote) continue;
        const i64 j = places.weight((i64)pi((u64)n));
        weights[j] = (i8)max(-1, min(1, weights[j] + vote * ternary_sign(key, (u64)j)));
    }
}

// step[n] = what ternary_step adds to weight first + n before it clamps: a slice, rebuilt alone.
ES_KERNEL __launch_bounds__(128) ternary_slice(i8* __restrict__ step,         // (count,), written
                                               const i8* __restrict__ votes,  // (units,)
                                               i64 first, i64 count, i64 units, i64 nonzeros,
                                               const i64* __restrict__ tensors, i32 tensor_count, i64 size,
                                               u32 half_bits, u32 key0, u32 key1, u32 epoch) {
    ES_PLACES;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x) {
        const i64 j = first + at, place = places.of(j);
        const u64 n = pi.inverse((u64)place);
        i32 vote = n < (u64)(units * nonzeros) ? votes[n / (u64)nonzeros] : 0;
        if (vote && places.weight(place) != j) vote = 0;  // another row of its column
        step[at] = (i8)(vote ? vote * ternary_sign(key, (u64)j) : 0);
    }
}

// Bernoulli supports, as published: weight j belongs to unit i if word j of (stream 5, unit i) is below `below`.
// sums[j] += sign_j sum_i vote_i [j in i]. Dense: 0.25 counters a weight and voting unit. A thread takes four weights.
ES_KERNEL __launch_bounds__(128) ternary_bernoulli(i32* __restrict__ sums,         // (size,), +=
                                                   const i32* __restrict__ units,  // (active,) units that voted
                                                   const i8* __restrict__ votes,   // (active,)
                                                   i32 active, i64 size, u64 below, u32 key0, u32 key1, u32 epoch) {
    const Key key = {key0, key1, epoch};
    for (i64 four = (i64)blockIdx.x * blockDim.x + threadIdx.x; 4 * four < size; four += (i64)gridDim.x * blockDim.x) {
        i32 sum[4] = {};
        for (i32 i = 0; i < active; ++i) {
            const uint4 words = philox(key, (u32)four, (u32)kTernarySupport << 24, (u32)units[i]);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] += word_of(words, j) < below ? votes[i] : 0;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (4 * four + j < size) sums[4 * four + j] += sum[j] * ternary_sign(key, (u64)(4 * four + j));
    }
}

// weights := clamp_T(weight + clamp_T(sum)).
ES_KERNEL __launch_bounds__(256) ternary_apply(i8* __restrict__ weights,      // (size,), +=
                                               const i32* __restrict__ sums,  // (size,)
                                               i64 size) {
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < size; at += (i64)gridDim.x * blockDim.x)
        weights[at] = (i8)max(-1, min(1, weights[at] + max(-1, min(1, sums[at]))));
}
