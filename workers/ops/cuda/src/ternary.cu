// Ternary perturbations for noise_step, rebuilt from counters (specs/noise_step.md section 8).
//
// Exactly k non-zeros, disjoint supports: perturbation i touches pi(i k) .. pi(i k + k - 1), pi a keyed permutation
// of [0, d): a 4-round balanced Feistel network with cycle walking. Disjoint supports mean that no weight is touched
// twice, so the step is a scatter without atomics, and pi's inverse gives any slice of it alone.
// Definition in NumPy: workers/ops/cuda/ternary_reference.py.

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

// Bit 0 of entry j of the sign stream: 1 is +1, 0 is -1.
ES_DEVICE i32 ternary_sign(Key key, u64 j) {
    const uint4 words = philox(key, (u32)(j / 16), (u32)kTernarySign << 24, 0);
    return (byte_of(word_of(words, (int)(j % 16) / 4), (int)(j % 4)) & 1) ? 1 : -1;
}

// positions[n] = pi(first + n), signs[n] = its sign, n < count: the supports of perturbations, in order.
ES_KERNEL __launch_bounds__(128)
    ternary_support(i64* __restrict__ positions,  // (count,), written
                    i8* __restrict__ signs,       // (count,), written
                    i64 first, i64 count, i64 size, u32 half_bits, u32 key0, u32 key1, u32 epoch) {
    const Permutation permutation = {{key0, key1, epoch}, half_bits, (u64)size};
    for (i64 n = (i64)blockIdx.x * blockDim.x + threadIdx.x; n < count; n += (i64)gridDim.x * blockDim.x) {
        const u64 position = permutation((u64)(first + n));
        positions[n] = (i64)position;
        signs[n] = (i8)ternary_sign(permutation.key, position);
    }
}

// weights[pi(n)] := clamp_T(weight + vote of n div k x sign), n < units k.
ES_KERNEL __launch_bounds__(128)
    ternary_step(i8* __restrict__ weights,      // (size,), values -1, 0, 1, +=
                 const i8* __restrict__ votes,  // (units,)
                 i64 units, i64 nonzeros, i64 size, u32 half_bits, u32 key0, u32 key1, u32 epoch) {
    const Permutation permutation = {{key0, key1, epoch}, half_bits, (u64)size};
    for (i64 n = (i64)blockIdx.x * blockDim.x + threadIdx.x; n < units * nonzeros; n += (i64)gridDim.x * blockDim.x) {
        const i32 vote = votes[n / nonzeros];
        if (!vote) continue;
        const u64 j = permutation((u64)n);
        weights[j] = (i8)max(-1, min(1, weights[j] + vote * ternary_sign(permutation.key, j)));
    }
}

// step[j] = what ternary_step adds to weight first + j before it clamps: a slice, rebuilt alone.
ES_KERNEL __launch_bounds__(128) ternary_slice(i8* __restrict__ step,         // (count,), written
                                               const i8* __restrict__ votes,  // (units,)
                                               i64 first, i64 count, i64 units, i64 nonzeros, i64 size, u32 half_bits,
                                               u32 key0, u32 key1, u32 epoch) {
    const Permutation permutation = {{key0, key1, epoch}, half_bits, (u64)size};
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x) {
        const u64 j = (u64)(first + at), n = permutation.inverse(j);
        const i32 vote = n < (u64)(units * nonzeros) ? votes[n / (u64)nonzeros] : 0;
        step[at] = (i8)(vote ? vote * ternary_sign(permutation.key, j) : 0);
    }
}

// Bernoulli supports, as published: weight j belongs to unit i if word j of (stream 5, unit i) is below `below`.
// sums[j] += sign_j sum_i vote_i [j in i]. Dense: 0.25 counters a weight and voting unit. A thread takes four weights.
ES_KERNEL __launch_bounds__(128) ternary_bernoulli(i32* __restrict__ sums,         // (size,), +=
                                                   const i32* __restrict__ units,  // (active,) units that voted
                                                   const i8* __restrict__ votes,   // (active,)
                                                   i32 active, i64 size, u32 below, u32 key0, u32 key1, u32 epoch) {
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
