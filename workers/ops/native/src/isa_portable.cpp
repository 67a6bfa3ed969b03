#include "simd_portable.hpp"

#include "isa.hpp"

namespace es {
extern const Kernels kPortable = table<Portable>();
}
