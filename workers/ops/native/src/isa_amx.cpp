#include "simd_amx.hpp"

#include "isa.hpp"

namespace es {
extern const Kernels kAmx = table<Amx>();
}
