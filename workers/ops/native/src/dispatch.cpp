#include "dispatch.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace es {

extern const Kernels kPortable;

#if defined(__x86_64__)

extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
extern const Kernels kAmx;

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni");
}

#ifdef ES_AMX_EMULATED
bool has_amx() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
#else
// Linux gives the tile state only to processes that ask for it; threads started later inherit the permission.
bool has_amx() {
    unsigned eax, ebx, ecx, edx;
    if (!has_avx512vnni() || !__builtin_cpu_supports("avx512vbmi")) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    if (!(edx & kTile) || !(edx & kInt8)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

const Choice* choices(size_t& count) {
    static const Choice all[] = {
        {&kPortable, true},
        {&kAvx2, has_avx2()},
        {&kAvx512Vnni, has_avx512vnni()},
        {&kAmx, has_amx()},
    };
    count = sizeof all / sizeof *all;
    return all;
}

#elif defined(__aarch64__)

extern const Kernels kNeon;

const Choice* choices(size_t& count) {
    static const Choice all[] = {{&kPortable, true}, {&kNeon, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0}};
    count = sizeof all / sizeof *all;
    return all;
}

#else

const Choice* choices(size_t& count) {
    static const Choice all[] = {{&kPortable, true}};
    count = 1;
    return all;
}

#endif

}  // namespace es
