"""specs/egg.md once more, with Python integers and nothing else: a second derivation, for tiny shapes.

Tensors are nested lists by name; the noise of a pair is a function of (tensor name, which, r, index).
"""

from __future__ import annotations

from math import isqrt, log2


def c(v: int) -> int:
    return min(127, max(-127, v))


def wrap(v: int) -> int:
    """int32 modulo 2^32."""
    return (v + (1 << 31)) % (1 << 32) - (1 << 31)


def exp2_entry(i: int) -> int:
    """trunc(16 * 2^(i/16)), by exact comparison: the largest x with x^16 <= 16^16 * 2^i."""
    x = int(16 * 2 ** (i / 16))
    while x**16 > 16**16 << i:
        x -= 1
    while (x + 1) ** 16 <= 16**16 << i:
        x += 1
    return x


def log_sum_exp(s: int) -> int:
    """trunc(16 log2(s / 16)): the largest k with 2^k 16^16 <= s^16."""
    k = int(16 * log2(s / 16))
    while 16**16 << k > s**16:
        k -= 1
    while 16**16 << (k + 1) <= s**16:
        k += 1
    return k


class Egg:
    """One member: parameters, the noise of its pair and its sign (0: unperturbed)."""

    def __init__(self, tensors, width, layers, shift, rank=0, sign=0, factor_a=None, factor_b=None, product=None):
        self.t, self.D, self.L, self.S = tensors, width, layers, 4 + shift
        self.rank, self.sign = rank, sign
        self.A, self.B, self.uv = factor_a, factor_b, product
        self.state = [[0] * width for _ in range(layers)]
        self.wrapped = False

    def matmul(self, name, x):
        rows, size = self.t[name], len(x)
        dots = []
        if self.sign:
            dots = [wrap(sum(x[i] * self.B(name, r, i) for i in range(size))) for r in range(self.rank)]
        out = []
        for o in range(len(rows)):
            acc = sum(rows[o][i] * x[i] for i in range(size))
            if self.sign:
                term = sum(dots[r] * self.sign * self.A(name, r, o) for r in range(self.rank))
                self.wrapped |= term != wrap(term)
                acc = wrap(acc + (wrap(term) >> self.S))
            out.append(c(acc // (16 * isqrt(size))))
        return out

    def vector(self, name):
        if not self.sign:
            return [c(p) for p in self.t[name]]
        return [c(p + ((self.sign * self.uv(name, j)) >> self.S)) for j, p in enumerate(self.t[name])]

    def embedding(self, k):
        row = self.t["emb"][k]
        if not self.sign:
            return [c(p) for p in row]
        terms = [
            sum(self.sign * self.A("emb", r, k) * self.B("emb", r, j) for r in range(self.rank)) for j in range(self.D)
        ]
        return [c(row[j] + (terms[j] >> self.S)) for j in range(self.D)]

    def norm(self, name, x):
        w, m = self.vector(name), max(1, sum(abs(v) for v in x) // self.D)
        return [c((v * weight) // m) for v, weight in zip(x, w, strict=True)]

    def layer(self, n, x):
        b, s, D = f"blocks.{n}.", self.state[n], range(self.D)
        u = self.norm(b + "ln1", x)
        terms = self.matmul(b + "att.Wf", u), self.matmul(b + "att.Uf", s), self.vector(b + "att.bf")
        f = [c(sum(term)) for term in zip(*terms, strict=True)]
        p = [((f[j] + 127) * s[j]) >> 8 for j in D]
        terms = self.matmul(b + "att.Wh", u), self.matmul(b + "att.Uh", p), self.vector(b + "att.bh")
        k = [c(sum(term)) for term in zip(*terms, strict=True)]
        self.state[n] = [s[j] + (((f[j] + 127) * (k[j] - s[j])) >> 8) for j in D]
        assert all(-127 <= v <= 127 for v in self.state[n])
        x = [c(x[j] + self.state[n][j]) for j in D]
        y = self.matmul(b + "mlp.1", self.matmul(b + "mlp.0", self.norm(b + "ln2", x)))
        return [c(x[j] + y[j]) for j in D]

    def step(self, byte):
        if byte == 0:
            self.state = [[0] * self.D for _ in range(self.L)]
        x = self.embedding(byte)
        for n in range(self.L):
            x = self.layer(n, x)
        return self.matmul("head", self.norm("ln_out", x))

    def score(self, row, burn_in):
        total = 0
        for position in range(len(row) - 1):
            z = [v + 128 for v in self.step(row[position])]
            if position >= burn_in:
                total += z[row[position + 1]] - log_sum_exp(sum(exp2_entry(i) for i in z))
        return total


def moved(weight: int, z: int, k: int, pairs: int, sign_noise: bool) -> int:
    if 16 * abs(z) < k * isqrt(pairs) * (1 if sign_noise else 256):
        return weight
    return c(weight + 1) if z > 0 else c(weight - 1)
