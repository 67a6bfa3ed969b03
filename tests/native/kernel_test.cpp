// Runs every instruction set that this machine has on the cases of a file made by vectors.py from the reference
// backend, and compares everything bit for bit. Needs no Python: it is what runs under sanitizers, under qemu and
// on emulated AMX tiles. Usage: kernel_test FILE [ISA ...]; the named instruction sets must be there.
#include <cstdio>
#include <cstring>
#include <string>

#include "dispatch.hpp"
#include "driver.hpp"
#include "reader.hpp"

namespace {

enum Size {
    kWidth,
    kLayers,
    kSigmaShift,
    kRank,
    kUnits,
    kRows,
    kRowBytes,
    kBurnIn,
    kSeed,
    kEpoch,
    kFirstUnit,
    kSignNoise,
    kThreshold,
    kTensors,
    kParameters,
    kFactors,
    kProducts,
    kMoved,
    kSizes
};

struct Case {
    std::vector<int64_t> size;
    std::vector<es::Tensor> tensors;
    std::vector<uint64_t> digest;
    std::vector<int8_t> parameters, factors, state_in, state_out, eval_state_out, logits, votes, updated;
    std::vector<int16_t> products;
    std::vector<uint8_t> rows;
    std::vector<int32_t> row_of_pair, scores, eval_scores, sums;

    explicit Case(Reader& in) : size(in.take<int64_t>(kSizes)) {
        for (int64_t t = 0; t < size[kTensors]; ++t) {
            auto row = in.take<int64_t>(6);
            tensors.push_back({row[0], row[1], row[2], row[3], row[4], row[5]});
        }
        const size_t units = n(kUnits), members = 2 * units, state = n(kLayers) * n(kWidth);
        digest = in.take<uint64_t>(1);
        parameters = in.take<int8_t>(n(kParameters));
        factors = in.take<int8_t>(units * n(kFactors)), products = in.take<int16_t>(units * n(kProducts));
        rows = in.take<uint8_t>(n(kRows) * n(kRowBytes)), row_of_pair = in.take<int32_t>(units);
        state_in = in.take<int8_t>(members * state), state_out = in.take<int8_t>(members * state);
        scores = in.take<int32_t>(members);
        eval_state_out = in.take<int8_t>(n(kRows) * state), eval_scores = in.take<int32_t>(n(kRows));
        logits = in.take<int8_t>(members * 256);
        votes = in.take<int8_t>(units), sums = in.take<int32_t>(n(kParameters));
        updated = in.take<int8_t>(n(kParameters));
    }
    size_t n(Size which) const { return size_t(size[which]); }
};

int failures = 0;

template <class T>
void expect(const es::Kernels& k, const char* what, const std::vector<T>& expected, const std::vector<T>& got) {
    if (expected == got) return;
    size_t i = 0;
    while (expected[i] == got[i]) ++i;
    std::printf("%s: %s differs first at %zu: %lld, expected %lld\n", k.name, what, i, (long long)got[i],
                (long long)expected[i]);
    ++failures;
}

es::Forward forward_of(const Case& c, const uint8_t* model, bool noisy) {
    es::Forward f{};
    f.shape = {int(c.size[kWidth]), int(c.size[kLayers]), int(c.size[kSigmaShift])};
    f.model = model;
    f.rows = c.rows.data(), f.row_bytes = c.n(kRowBytes), f.steps = c.size[kRowBytes] - 1, f.burn_in = c.size[kBurnIn];
    f.units = noisy ? c.n(kUnits) : c.n(kRows);
    if (!noisy) return f;
    f.factors = c.factors.data(), f.factor_stride = c.n(kFactors);
    f.products = c.products.data(), f.product_stride = c.n(kProducts);
    f.rank = int(c.size[kRank]), f.row_of_pair = c.row_of_pair.data();
    return f;
}

void check_forward(const es::Kernels& k, const Case& c) {
    const es::Shape shape{int(c.size[kWidth]), int(c.size[kLayers]), int(c.size[kSigmaShift])};
    const es::Buffer model = es::allocate(k.model_bytes(shape));
    k.pack_model(shape, c.parameters.data(), model.get());

    std::vector<int8_t> state = c.state_in;
    std::vector<int32_t> scores(c.scores.size());
    es::Forward f = forward_of(c, model.get(), true);
    f.state = state.data(), f.scores = scores.data();
    es::run_forward(k, f, 2);
    expect(k, "scores", c.scores, scores);
    expect(k, "state", c.state_out, state);

    std::vector<int8_t> eval_state(c.eval_state_out.size());
    std::vector<int32_t> eval_scores(c.eval_scores.size());
    f = forward_of(c, model.get(), false);
    f.state = eval_state.data(), f.scores = eval_scores.data();
    es::run_forward(k, f, 1);
    expect(k, "unperturbed scores", c.eval_scores, eval_scores);
    expect(k, "unperturbed state", c.eval_state_out, eval_state);

    std::vector<uint8_t> tokens(2 * c.n(kUnits));
    for (size_t m = 0; m < tokens.size(); ++m) tokens[m] = uint8_t(m * 37);
    std::vector<int8_t> logits(c.logits.size());
    state = c.state_in;
    f = forward_of(c, model.get(), true);
    f.rows = tokens.data(), f.row_bytes = 1, f.steps = 1, f.burn_in = 0, f.row_of_pair = nullptr;
    f.state = state.data(), f.logits = logits.data();
    es::run_forward(k, f, 1);
    expect(k, "logits", c.logits, logits);
}

void check_generation(const es::Kernels& k, const Case& c) {
    const uint64_t seed = uint64_t(c.size[kSeed]);
    const es::NoiseKey key{uint32_t(seed), uint32_t(seed >> 32), uint32_t(c.size[kEpoch])};
    std::vector<int8_t> factors(c.factors.size());
    std::vector<int16_t> products(c.products.size());
    es::run_noise(k, c.tensors, int(c.size[kRank]), key, uint32_t(c.size[kFirstUnit]), c.n(kUnits), factors.data(),
                  c.n(kFactors), products.data(), c.n(kProducts), 2);
    expect(k, "factors", c.factors, factors);
    expect(k, "products", c.products, products);

    es::Votes votes{};
    votes.factors = factors.data(), votes.factor_stride = c.n(kFactors);
    votes.products = products.data(), votes.product_stride = c.n(kProducts);
    votes.rank = int(c.size[kRank]), votes.sign_noise = c.size[kSignNoise] != 0;
    std::vector<int32_t> sums(c.sums.size());
    es::run_accumulate(k, c.tensors, votes, c.votes.data(), c.n(kUnits), sums.data(), 2);
    expect(k, "sums", c.sums, sums);

    std::vector<int8_t> updated = c.parameters;
    const std::vector<int64_t> moved{
        es::run_apply(k, updated.data(), sums.data(), c.size[kParameters], c.size[kThreshold], 2)};
    expect(k, "moved", {c.size[kMoved]}, moved);
    expect(k, "updated", c.updated, updated);
    const std::vector<uint64_t> digest{es::digest(c.tensors, c.parameters.data(), 2)};
    expect(k, "digest", c.digest, digest);
}

bool asked(const char* name, int argc, char** argv) {
    for (int a = 2; a < argc; ++a)
        if (!std::strcmp(name, argv[a])) return true;
    return argc <= 2;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return std::printf("usage: kernel_test FILE [ISA ...]\n"), 2;
    Reader reader(argv[1]);
    std::vector<Case> cases;
    while (!reader.done()) cases.emplace_back(reader);

    size_t count = 0;
    int ran = 0;
    const es::Choice* all = es::choices(count);
    for (size_t i = 0; i < count; ++i) {
        if (!all[i].available || !asked(all[i].kernels->name, argc, argv)) continue;
        for (const Case& c : cases) check_forward(*all[i].kernels, c), check_generation(*all[i].kernels, c);
        std::printf("%s: %zu cases\n", all[i].kernels->name, cases.size());
        ++ran;
    }
    if (ran < (argc > 2 ? argc - 2 : 1)) return std::printf("an instruction set asked for is missing\n"), 1;
    return failures || cases.empty() ? 1 : 0;
}
