/* Vector math: out[i] <- f(x[i]), by argument reduction and minimax polynomials of our own (core/lanes.h) instead of
 * libm, whose bits differ by platform. Special values are exact: exp(0) = 1, exp(-inf) = 0, log(1) = 0, log(0) = -inf,
 * log of a negative number NaN, NaN stays NaN; denormal arguments and results are right.
 * Error class in units in the last place: exp below 0.85, log below 1. */
#ifndef CURVK_VMATH_H
#define CURVK_VMATH_H

#include "curvk/base.h"

#define CURVK_VMATH_LIST(T) const T* const* x, T* const* out, const int64_t* sizes, int64_t count
#define CURVK_VMATH(FMT, T)                                                                                      \
    CURVK_ELEMENTWISE int32_t curvk_exp_list_##FMT(CURVK_VMATH_LIST(T));                                         \
    CURVK_ELEMENTWISE int32_t curvk_exp_##FMT(const T* x, T* out, int64_t n);                                    \
    CURVK_ELEMENTWISE int32_t curvk_log_list_##FMT(CURVK_VMATH_LIST(T));                                         \
    CURVK_ELEMENTWISE int32_t curvk_log_##FMT(const T* x, T* out, int64_t n);
CURVK_VMATH(f32, float)
CURVK_VMATH(f64, double)
#undef CURVK_VMATH

#endif
