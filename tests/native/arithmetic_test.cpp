// The lane arithmetic of one instruction set against plain integers, over every input that can occur. Built once for
// each instruction set with its header in ES_ISA_HEADER and its type in ES_ISA.
#include <cmath>
#include <cstdio>

#include ES_ISA_HEADER
#include "lse.hpp"

namespace {

using I = es::ES_ISA;
using I32 = I::I32;
using I16 = I::I16;
using Quad = I::Quad;

int failures = 0;

void expect(const char* what, long long expected, long long got, long long a, long long b) {
    if (expected == got) return;
    if (++failures < 20) std::printf("%s(%lld, %lld) = %lld, expected %lld\n", what, a, b, got, expected);
}

int floor_divide(int a, int b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
int clip(int v) { return v > 127 ? 127 : v < -127 ? -127 : v; }

void check_norm() {
    for (int m = 1; m <= 127; ++m) {
        const auto by = I::quotient_by(I::broadcast(m));
        for (int x = -127; x <= 127; ++x)
            for (int w = -127; w <= 127; w += 4) {
                Quad weights;
                for (int b = 0; b < 4 * I::W; ++b) weights[b] = int8_t(clip(w + b % 4));
                const Quad got = I::norm_quad(Quad{} + int8_t(x), weights, by);
                for (int b = 0; b < 4 * I::W; b += b < 4 ? 1 : 4 * I::W - 5)
                    expect("norm", clip(floor_divide(x * weights[b], m)), got[b], x * 1000 + m, weights[b]);
            }
    }
}

void check_mean() {
    for (int width = 16; width <= 1024; width += 16)
        for (int sum = 0; sum <= 127 * width; sum += I::W) {
            I32 sums;
            for (int l = 0; l < I::W; ++l) sums[l] = sum + l;
            const I32 got = I::floor((I::to_float(sums) + 0.5f) * (1.0f / float(width)));
            for (int l = 0; l < I::W; ++l) expect("mean", sums[l] / width, got[l], sums[l], width);
        }
}

void check_quotient(int acc, int root, const es::Divisor& divisor) {
    const int expected = clip(floor_divide(acc, 16 * root));
    const I32 a = I::broadcast(acc), b = I::broadcast(0);
    const Quad got = I::divide_quad(a, b, a, b, divisor);
    expect("quotient", expected, got[0], acc, root);
    expect("quotient", expected, got[4 * I::W - 2], acc, root);
    expect("quotient of 0", 0, got[1], acc, root);
    if (!divisor.power) return;
    const Quad shifted = I::clip_quad(b, a >> divisor.power, b, b);
    expect("shifted quotient", expected, shifted[1], acc, root);
    expect("shifted quotient of 0", 0, shifted[0], acc, root);
}

void check_quotients() {
    for (int root = 4; root <= 64; ++root) {
        const es::Divisor divisor = es::divisor_for(root * root);
        expect("power of two", (root & (root - 1)) == 0, divisor.power != 0, root, 0);
        for (int acc = -16 * 130 * root; acc <= 16 * 130 * root; ++acc) check_quotient(acc, root, divisor);
        for (int e = 12; e < 32; ++e)
            for (int near = -1; near <= 1; ++near) {
                check_quotient(int((1ll << e) + near > INT32_MAX ? INT32_MAX : (1ll << e) + near), root, divisor);
                check_quotient(int(-(1ll << e) + near < INT32_MIN ? INT32_MIN : -(1ll << e) + near), root, divisor);
            }
    }
}

void check_gate() {
    for (int gate = 0; gate <= 254; ++gate)
        for (int change = -255; change <= 255; ++change) {
            const I16 got = I::multiply_high(I16{} + int16_t(gate << 7), I16{} + int16_t(change * 2));
            expect("gate", (gate * change) >> 8, got[0], gate, change);
            expect("gate", (gate * change) >> 8, got[2 * I::W - 1], gate, change);
        }
}

void check_loss() {
    for (int z = 0; z < 256; ++z) {
        const I32 got = I::exp2(es::kExp2Mantissa, I::broadcast(z));
        for (int l = 0; l < I::W; ++l) expect("exp2", (long long)std::trunc(16 * std::exp2(z / 16.0)), got[l], z, l);
    }
    for (int step = 64; step <= 16 * 24 + 1; ++step)
        for (int near = -1; near <= 1; ++near) {
            const long long s = (long long)std::ceil(16 * std::exp2(step / 16.0)) + near;
            if (s < 256 || s >= 1 << 28) continue;
            expect("log_sum_exp", (long long)(16 * std::log2(double(s) / 16)), es::log_sum_exp(uint32_t(s)), s, 0);
        }
}

void check_philox() {
    for (uint32_t i = 0; i < 100000; ++i) {
        I::U32 a, high, low;
        for (int l = 0; l < I::W; ++l) a[l] = (i * 16 + uint32_t(l)) * 2654435761u;
        I::multiply_wide(a, 0xD2511F53u, high, low);
        for (int l = 0; l < I::W; ++l) {
            const uint64_t product = uint64_t{a[l]} * 0xD2511F53u;
            expect("low", uint32_t(product), low[l], a[l], l);
            expect("high", uint32_t(product >> 32), high[l], a[l], l);
        }
    }
}

}  // namespace

int main() {
    check_norm(), check_mean(), check_quotients(), check_gate(), check_loss(), check_philox();
    std::printf("%s: arithmetic %s\n", I::kName, failures ? "differs" : "exact");
    return failures != 0;
}
