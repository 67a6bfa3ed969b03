// Python sees raw kernels here; `workers.ops.native` checks arguments and raises the project's errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "dispatch.hpp"
#include "driver.hpp"
#include "ternary.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// Rows are (out, in, offset, first, second, index), vectors with out = 0.
std::vector<es::Tensor> tensors_of(const Array<const int64_t>& table) {
    std::vector<es::Tensor> tensors;
    for (size_t t = 0; t < table.shape(0); ++t) {
        const int64_t* row = table.data() + 6 * t;
        tensors.push_back({row[0], row[1], row[2], row[3], row[4], row[5]});
    }
    return tensors;
}

// `numbers` is (support, size, places, nonzeros, bound); rows of `table` are (first, columns, rows, offset).
es::Ternary ternary_of(const Array<const int64_t>& numbers, const Array<const int64_t>& table, uint64_t seed,
                       uint32_t epoch) {
    const int64_t* n = numbers.data();
    es::Ternary t{int(n[0]), {uint32_t(seed), uint32_t(seed >> 32), epoch}, n[1], n[2], n[3], uint64_t(n[4]), {}};
    for (size_t row = 0; row < table.shape(0); ++row) {
        const int64_t* r = table.data() + 4 * row;
        t.columns.push_back({r[0], r[1], r[2], r[3]});
    }
    return t;
}

// A packed snapshot of the parameters.
struct Model {
    const es::Kernels* kernels;
    es::Shape shape;
    es::Buffer packed;
};

class Backend {
  public:
    Backend(const std::string& isa, int threads) : kernels_(find(isa)), threads_(threads) {}

    std::string isa() const { return kernels_->name; }

    Model prepare(int width, int layers, int sigma_shift, Array<const int8_t> parameters) const {
        nb::gil_scoped_release release;
        const es::Shape shape{width, layers, sigma_shift};
        Model model{kernels_, shape, es::allocate(kernels_->model_bytes(shape))};
        kernels_->pack_model(shape, parameters.data(), model.packed.get());
        return model;
    }

    void forward(const Model& model, int rank, std::optional<Array<const int8_t>> factors,
                 std::optional<Array<const int16_t>> products, Array<const uint8_t> rows,
                 std::optional<Array<const int32_t>> row_of_pair, int64_t burn_in, std::optional<Array<int8_t>> state,
                 std::optional<Array<int32_t>> scores, std::optional<Array<int8_t>> logits) const {
        nb::gil_scoped_release release;
        es::Forward f{};
        f.shape = model.shape, f.model = model.packed.get();
        f.rows = rows.data(), f.row_bytes = rows.shape(1);
        f.steps = int64_t(rows.shape(1)) - (scores ? 1 : 0), f.burn_in = burn_in;
        f.units = factors ? factors->shape(0) : rows.shape(0);
        if (factors) {
            f.rank = rank;
            f.factors = factors->data(), f.factor_stride = factors->shape(1);
            f.products = products->data(), f.product_stride = products->shape(1);
        }
        f.row_of_pair = row_of_pair ? row_of_pair->data() : nullptr;
        f.state = state ? state->data() : nullptr;
        f.scores = scores ? scores->data() : nullptr;
        f.logits = logits ? logits->data() : nullptr;
        es::run_forward(*kernels_, f, threads_);
    }

    void noise(Array<const int64_t> table, int rank, uint64_t seed, uint32_t epoch, uint32_t first_unit,
               Array<int8_t> factors, Array<int16_t> products) const {
        nb::gil_scoped_release release;
        const es::NoiseKey key{uint32_t(seed), uint32_t(seed >> 32), epoch};
        es::run_noise(*kernels_, tensors_of(table), rank, key, first_unit, factors.shape(0), factors.data(),
                      factors.shape(1), products.data(), products.shape(1), threads_);
    }

    void accumulate(Array<const int64_t> table, int rank, Array<const int8_t> factors, Array<const int16_t> products,
                    Array<const int8_t> votes, bool sign_noise, Array<int32_t> sums) const {
        nb::gil_scoped_release release;
        es::Votes v{};
        v.rank = rank, v.sign_noise = sign_noise;
        v.factors = factors.data(), v.factor_stride = factors.shape(1);
        v.products = products.data(), v.product_stride = products.shape(1);
        es::run_accumulate(*kernels_, tensors_of(table), v, votes.data(), factors.shape(0), sums.data(), threads_);
    }

    int64_t apply(Array<int8_t> parameters, Array<const int32_t> sums, int64_t threshold) const {
        nb::gil_scoped_release release;
        return es::run_apply(*kernels_, parameters.data(), sums.data(), int64_t(parameters.shape(0)), threshold,
                             threads_);
    }

    uint64_t digest(Array<const int64_t> table, Array<const int8_t> parameters) const {
        nb::gil_scoped_release release;
        return es::digest(tensors_of(table), parameters.data(), threads_);
    }

    void ternary_nonzeros(Array<const int64_t> numbers, Array<const int64_t> table, uint64_t seed, uint32_t epoch,
                          int64_t first, Array<int64_t> positions, Array<int8_t> signs) const {
        nb::gil_scoped_release release;
        const es::Ternary t = ternary_of(numbers, table, seed, epoch);
        es::ternary_nonzeros(t, first, int64_t(positions.shape(0)), positions.data(), signs.data(), threads_);
    }

    // (positions, signs) of one Bernoulli perturbation, as bytes of int64 and int8.
    nb::tuple ternary_chosen(Array<const int64_t> numbers, Array<const int64_t> table, uint64_t seed, uint32_t epoch,
                             uint32_t unit) const {
        std::vector<int64_t> positions;
        std::vector<int8_t> signs;
        {
            nb::gil_scoped_release release;
            es::ternary_chosen(ternary_of(numbers, table, seed, epoch), unit, positions, signs);
        }
        return nb::make_tuple(nb::bytes(reinterpret_cast<const char*>(positions.data()), 8 * positions.size()),
                              nb::bytes(reinterpret_cast<const char*>(signs.data()), signs.size()));
    }

    void ternary_step(Array<const int64_t> numbers, Array<const int64_t> table, uint64_t seed, uint32_t epoch,
                      Array<const int8_t> votes, Array<int8_t> weights) const {
        nb::gil_scoped_release release;
        es::ternary_step(ternary_of(numbers, table, seed, epoch), votes.data(), int64_t(votes.shape(0)),
                         weights.data(), threads_);
    }

    int64_t peak(int64_t rounds) const {
        nb::gil_scoped_release release;
        return kernels_->peak(rounds);
    }

  private:
    static const es::Kernels* find(const std::string& isa) {
        size_t count = 0;
        const es::Choice* all = es::choices(count);
        for (size_t i = 0; i < count; ++i)
            if (all[i].available && isa == all[i].kernels->name) return all[i].kernels;
        throw std::invalid_argument("instruction set " + isa + " is not available");
    }

    const es::Kernels* kernels_;
    int threads_;
};

nb::list detect() {
    size_t count = 0;
    const es::Choice* all = es::choices(count);
    nb::list result;
    for (size_t i = 0; i < count; ++i) result.append(nb::make_tuple(all[i].kernels->name, all[i].available));
    return result;
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.def("detect", &detect);
    nb::class_<Model>(m, "Model");
    nb::class_<Backend>(m, "Backend")
        .def(nb::init<const std::string&, int>(), "isa"_a, "threads"_a)
        .def_prop_ro("isa", &Backend::isa)
        .def("prepare", &Backend::prepare)
        .def("forward", &Backend::forward, "model"_a, "rank"_a, "factors"_a.none(), "products"_a.none(), "rows"_a,
             "row_of_pair"_a.none(), "burn_in"_a, "state"_a.none(), "scores"_a.none(), "logits"_a.none())
        .def("noise", &Backend::noise)
        .def("accumulate", &Backend::accumulate)
        .def("apply", &Backend::apply)
        .def("digest", &Backend::digest)
        .def("ternary_nonzeros", &Backend::ternary_nonzeros)
        .def("ternary_chosen", &Backend::ternary_chosen)
        .def("ternary_step", &Backend::ternary_step)
        .def("peak", &Backend::peak);
}
