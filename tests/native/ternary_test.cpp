// Runs the ternary kernels on the cases of a file made by ternary_vectors.py from the reference backend, on one thread
// and on three, and compares everything bit for bit. Needs no Python. Usage: ternary_test FILE
#include <cstdio>

#include "reader.hpp"
#include "ternary.hpp"

namespace {

enum Size { kSupport, kWeights, kPlaces, kNonzeros, kBound, kSeed, kEpoch, kFirstUnit, kUnits, kTensors, kFound, kSizes };

struct Case {
    std::vector<int64_t> size;
    es::Ternary ternary;
    std::vector<int64_t> starts, positions;
    std::vector<int8_t> signs, votes, weights, moved;

    explicit Case(Reader& in) : size(in.take<int64_t>(kSizes)) {
        const uint64_t seed = uint64_t(size[kSeed]);
        ternary = {int(size[kSupport]), {uint32_t(seed), uint32_t(seed >> 32), uint32_t(size[kEpoch])},
                   size[kWeights],      size[kPlaces],
                   size[kNonzeros],     uint64_t(size[kBound]),
                   {}};
        for (int64_t t = 0; t < size[kTensors]; ++t) {
            const auto row = in.take<int64_t>(4);
            ternary.columns.push_back({row[0], row[1], row[2], row[3]});
        }
        const size_t units = size_t(size[kUnits]), found = size_t(size[kFound]), count = size_t(size[kWeights]);
        starts = in.take<int64_t>(units + 1), positions = in.take<int64_t>(found), signs = in.take<int8_t>(found);
        votes = in.take<int8_t>(size_t(size[kFirstUnit]) + units), weights = in.take<int8_t>(count), moved = in.take<int8_t>(count);
    }
};

int failures = 0;

template <class T>
void expect(const Case& c, const char* what, const std::vector<T>& expected, const std::vector<T>& got) {
    if (expected == got) return;
    std::printf("support %d: %s differ (%zu values, expected %zu)\n", c.ternary.support, what, got.size(),
                expected.size());
    ++failures;
}

void check(const Case& c, int threads) {
    std::vector<int64_t> positions;
    std::vector<int8_t> signs;
    if (c.ternary.support == es::kBernoulli) {
        std::vector<int64_t> starts{0};
        for (uint32_t unit = 0; unit + 1 < c.starts.size(); ++unit) {
            es::ternary_chosen(c.ternary, uint32_t(c.size[kFirstUnit]) + unit, positions, signs);
            starts.push_back(int64_t(positions.size()));
        }
        expect(c, "starts", c.starts, starts);
    } else {
        positions.resize(c.positions.size()), signs.resize(c.signs.size());
        es::ternary_nonzeros(c.ternary, c.size[kFirstUnit] * c.ternary.nonzeros, int64_t(positions.size()),
                             positions.data(), signs.data(), threads);
    }
    expect(c, "positions", c.positions, positions);
    expect(c, "signs", c.signs, signs);
    std::vector<int8_t> weights = c.weights;
    es::ternary_step(c.ternary, c.votes.data(), int64_t(c.votes.size()), weights.data(), threads);
    expect(c, "weights", c.moved, weights);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return std::printf("usage: ternary_test FILE\n"), 2;
    Reader reader(argv[1]);
    size_t cases = 0;
    for (; !reader.done(); ++cases) {
        const Case c(reader);
        for (int threads : {1, 3}) check(c, threads);
    }
    std::printf("ternary: %zu cases\n", cases);
    return failures || !cases ? 1 : 0;
}
