/* 16-bit storage formats: bf16 (1+8+7 bits) and IEEE binary16 (1+5+10 bits), as uint16_t bit patterns.
 * Widening is exact. Narrowing rounds to nearest, ties to even, overflow to infinity; NaN stays NaN (quiet). */
#ifndef CURVK_HALF_H
#define CURVK_HALF_H

#include "curvk/base.h"

#define CURVK_HALF(FMT)                                                                             \
    CURVK_ELEMENTWISE int32_t curvk_to_float32_##FMT(const uint16_t* x, float* out, int64_t n);          \
    CURVK_ELEMENTWISE int32_t curvk_from_float32_##FMT(const float* x, uint16_t* out, int64_t n);
CURVK_HALF(bf16)
CURVK_HALF(f16)
#undef CURVK_HALF

#endif
