// The floating-point control word that kernels and their prologues run under, whatever the caller has set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace curvk {

class DefaultFloatControl {
   public:
#if defined(__x86_64__)
    DefaultFloatControl() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatControl() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatControl() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~DefaultFloatControl() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

   private:
    uint64_t saved_;
#endif
};

}  // namespace curvk
