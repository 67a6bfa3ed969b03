#include "simd_neon.hpp"

#include "isa.hpp"

namespace es {
extern const Kernels kNeon = table<Neon>();
}
