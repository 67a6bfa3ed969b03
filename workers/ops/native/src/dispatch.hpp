// The one place that knows which instruction sets were built and which of them this CPU has.
#pragma once

#include <cstddef>

#include "kernels.hpp"

namespace es {

struct Choice {
    const Kernels* kernels;
    bool available;  // on this CPU, under this kernel
};

// Every instruction set built in, slowest first.
const Choice* choices(size_t& count);

}  // namespace es
