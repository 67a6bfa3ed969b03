#include "simd_avx512.hpp"

#include "isa.hpp"

namespace es {
extern const Kernels kAvx512Vnni = table<Avx512Vnni>();
}
