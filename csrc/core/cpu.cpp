// Which SIMD levels this machine runs, and the one in force. Compiled for the baseline.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/level.h"
#include "core/status.h"
#include "curvk.h"
#include "levels.h"  // generated: CURVK_LEVELS(X), the levels this build contains, lowest first

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace curvk {
namespace {

#if defined(__x86_64__)
bool bits(uint32_t value, uint32_t mask) { return (value & mask) == mask; }

// x86-64 psABI levels. A feature counts only if the OS saves its registers, which XCR0 tells.
int32_t machine_level() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    constexpr uint32_t sse3 = 1u << 0, ssse3 = 1u << 9, fma = 1u << 12, cx16 = 1u << 13, sse41 = 1u << 19, sse42 = 1u << 20,
                       movbe = 1u << 22, popcnt = 1u << 23, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if (!bits(c, sse3 | ssse3 | cx16 | sse41 | sse42 | popcnt)) return 0;
    if (!bits(c, fma | movbe | osxsave | avx | f16c)) return 2;
    uint32_t xcr0, high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    constexpr uint32_t ymm = 0x6, zmm = 0xe6;
    uint32_t a7, b7, c7, d7, ax, bx, cx, dx;
    if (!bits(xcr0, ymm) || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return 2;
    if (!__get_cpuid(0x80000001u, &ax, &bx, &cx, &dx)) return 2;
    constexpr uint32_t bmi1 = 1u << 3, avx2 = 1u << 5, bmi2 = 1u << 8, lzcnt = 1u << 5;
    if (!bits(b7, bmi1 | avx2 | bmi2) || !bits(cx, lzcnt)) return 2;
    constexpr uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F, DQ, CD, BW, VL
    return bits(xcr0, zmm) && bits(b7, avx512) ? 4 : 3;
}
#elif defined(__aarch64__)
int32_t machine_level() { return 8; }
#else
int32_t machine_level() { return 0; }
#endif

bool built(int32_t level) {
#define CURVK_IS(number) \
    if (level == number) return true;
    CURVK_LEVELS(CURVK_IS)
#undef CURVK_IS
    return false;
}

int32_t best_level() {
    int32_t best = 0;
#define CURVK_BEST(number) \
    if (curvk_simd_available(number)) best = number;
    CURVK_LEVELS(CURVK_BEST)
#undef CURVK_BEST
    return best;
}

}  // namespace

std::atomic<int32_t> active_level{best_level()};

}  // namespace curvk

int32_t curvk_simd() { return curvk::level(); }

int32_t curvk_simd_available(int32_t level) {
    static const int32_t machine = curvk::machine_level();
    return curvk::built(level) && level <= machine;
}

int32_t curvk_set_simd(int32_t level) {
    if (!curvk_simd_available(level))
        return curvk::fail(1, "curvk_set_simd: argument 'level': not in this build or not run by this machine");
    curvk::active_level.store(level, std::memory_order_relaxed);
    return CURVK_OK;
}
