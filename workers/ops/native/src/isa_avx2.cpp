#include "simd_avx2.hpp"

#include "isa.hpp"

namespace es {
extern const Kernels kAvx2 = table<Avx2>();
}
