/* Optimizer steps whose parameters and states may take fewer bytes than float32, and that do in the same sweep what
 * otherwise is another one: a running average of the parameters, a bfloat16 copy, zeroed gradients.
 *
 * T is the storage of p and g; the arithmetic is in S, T or float for the 16-bit formats. The suffix of a name says how
 * the states are stored: none, as S; 16, as bfloat16, stochastically rounded; 8, as codes in groups of 32 elements with
 * one float each, stochastically rounded; 8b, as the codes of bitsandbytes in groups of 256, to nearest.
 * Groups are counted in C order from the first element of an array; the last may be shorter.
 *
 * Codes c, with the group's scale s = max |x|:
 *   8 signed    c in -127..127 as two's complement:  x = s sign(c) R(|c| / 127),  R(y) the float with bits 2 y - 2^0
 *   8 unsigned  c in 0..255:                         x = s Q(c / 255),            Q(y) the float with bits 4 y - 3 2^0
 *   8b          c in 0..255: x = s M[c], M bitsandbytes' dynamic map (Dettmers et al. 2022), signed or unsigned
 * where y and 2^0 = 1.0 stand for their bits as integers. So R is y^2 and Q is y^4, linear between powers of two (at most
 * 11 % and 21 % below), R(0) = Q(0) = 0. The largest |x| of a group comes back exactly, and no x > 0 gets the unsigned
 * code 0: a second moment of 0 would make a step of lr m / eps.
 * A scale is 0 or at least 2^-126; where max |x| is less, only that does not come back exactly.
 * A group that holds a NaN or an infinity becomes NaN: its scale is NaN and its codes are 0.
 *
 * Stochastic rounding draws from curvk's noise (curvk/noise.h): group j of an array with the tensor word w has the words
 * r0..r3 of the block (j, w, draw) under the seed, r0 for the parameters, r1 and r2 for the states. Element k of the group
 * rounds with the 32 bits r + k 0x9e3779b9 modulo 2^32, uniform for each element and spread evenly over the group's.
 * A bfloat16 is rounded with the upper 16 of them, a float16 with 13, below 2^-14 with 14, a code with 9, all linearly in
 * the number that is stored.
 *
 * rounding says how a 16-bit p is stored:
 *   0  to nearest even
 *   1  stochastically
 *   2  Kahan: the parameter is p + low, both to nearest
 *   3  split: the parameter is the float whose upper half p is, to nearest, and whose lower half is in low (bf16 only)
 * ema <- ema_decay ema + (1 - ema_decay) p;  shadow <- p as bfloat16 to nearest;  g <- 0 if zero_grad.
 * Here p is the parameter before it is rounded. Kernels without a 16-bit p take rounding 0.
 *
 * Rows are worked on in tiles of 256 elements, and offsets must be multiples of 1024.
 * Error class: correctly rounded operations in the order written, no contraction. */
#ifndef CURVK_SWEEP_H
#define CURVK_SWEEP_H

#include "curvk/base.h"

#define CURVK_SWEEP_KEYS const int64_t* tensor /* per row */, const int64_t* offset /* per row */

/* What goes with any step: the low halves, the average, the copy, and where the step starts from, as in curvk/optim.h. */
#define CURVK_SWEEP_TABLES(T, S)                                                                                 \
    T* const* low /* or null */, S* const* ema /* or null */, curvk_bf16* const* shadow /* or null */,           \
    const T* const* origin /* or null */
#define CURVK_SWEEP_SCALARS                                                                                      \
    int64_t rounding /* [0, 3] */, double ema_decay /* [0, 1] */, int64_t zero_grad /* [0, 1] */, int64_t draw, int64_t seed

/* sgd_step and adam_step of curvk/optim.h so. */
#define CURVK_SGD_SWEEP_SCALARS                                                                                  \
    double lr /* [0, inf) */, double momentum /* [0, inf) */, double dampening /* (-inf, inf) */,                \
    double weight_decay /* [0, inf) */, int64_t nesterov /* [0, 1] */, int64_t decoupled /* [0, 1] */,           \
    int64_t maximize /* [0, 1] */, int64_t first /* [0, 1] */, double grad_scale /* (0, inf) */, CURVK_SWEEP_SCALARS
#define CURVK_ADAM_SWEEP_SCALARS                                                                                 \
    int64_t step /* [1, inf) */, double lr /* [0, inf) */, double beta1 /* [0, 1) */, double beta2 /* [0, 1) */, \
    double eps /* [0, inf) */, double weight_decay /* [0, inf) */, int64_t decoupled /* [0, 1] */,               \
    int64_t maximize /* [0, 1] */, double grad_scale /* (0, inf) */, CURVK_SWEEP_SCALARS

#define CURVK_SGD_SWEEP_LIST(T, S)                                                                               \
    T* const* p, T* const* g, S* const* buf /* or null */, CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS,           \
    const int64_t* sizes, int64_t count, CURVK_SGD_SWEEP_SCALARS
#define CURVK_SGD_SWEEP16_LIST(T, S)                                                                             \
    T* const* p, T* const* g, curvk_bf16* const* buf, CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS,                \
    const int64_t* sizes, int64_t count, CURVK_SGD_SWEEP_SCALARS
#define CURVK_SGD_SWEEP8_LIST(T, S)                                                                              \
    T* const* p, T* const* g, uint8_t* const* buf, float* const* buf_scale /* per 32 */,                         \
    CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count, CURVK_SGD_SWEEP_SCALARS
#define CURVK_SGD_SWEEP8B_LIST(T, S)                                                                             \
    T* const* p, T* const* g, uint8_t* const* buf, float* const* buf_scale /* per 256 */,                        \
    CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count, CURVK_SGD_SWEEP_SCALARS

#define CURVK_ADAM_SWEEP_LIST(T, S)                                                                              \
    T* const* p, T* const* g, S* const* m, S* const* v, S* const* max_v /* or null */,                           \
    CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count, CURVK_ADAM_SWEEP_SCALARS
#define CURVK_ADAM_SWEEP16_LIST(T, S)                                                                            \
    T* const* p, T* const* g, curvk_bf16* const* m, curvk_bf16* const* v, CURVK_SWEEP_TABLES(T, S),              \
    CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count, CURVK_ADAM_SWEEP_SCALARS
#define CURVK_ADAM_SWEEP8_LIST(T, S)                                                                             \
    T* const* p, T* const* g, uint8_t* const* m, float* const* m_scale /* per 32 */, uint8_t* const* v,          \
    float* const* v_scale /* per 32 */, CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS, const int64_t* sizes,        \
    int64_t count, CURVK_ADAM_SWEEP_SCALARS
#define CURVK_ADAM_SWEEP8B_LIST(T, S)                                                                            \
    T* const* p, T* const* g, uint8_t* const* m, float* const* m_scale /* per 256 */, uint8_t* const* v,         \
    float* const* v_scale /* per 256 */, CURVK_SWEEP_TABLES(T, S), CURVK_SWEEP_KEYS, const int64_t* sizes,       \
    int64_t count, CURVK_ADAM_SWEEP_SCALARS

#define CURVK_SWEEP(FMT, T, S)                                                                                   \
    CURVK_ELEMENTWISE int32_t curvk_sgd_sweep_list_##FMT(CURVK_SGD_SWEEP_LIST(T, S));                            \
    CURVK_ELEMENTWISE int32_t curvk_adam_sweep_list_##FMT(CURVK_ADAM_SWEEP_LIST(T, S));
#define CURVK_SWEEP_SHORT(FMT, T, S)                                                                             \
    CURVK_SWEEP(FMT, T, S)                                                                                       \
    CURVK_ELEMENTWISE int32_t curvk_sgd_sweep16_list_##FMT(CURVK_SGD_SWEEP16_LIST(T, S));                        \
    CURVK_ELEMENTWISE int32_t curvk_sgd_sweep8_list_##FMT(CURVK_SGD_SWEEP8_LIST(T, S));                          \
    CURVK_ELEMENTWISE int32_t curvk_sgd_sweep8b_list_##FMT(CURVK_SGD_SWEEP8B_LIST(T, S));                        \
    CURVK_ELEMENTWISE int32_t curvk_adam_sweep16_list_##FMT(CURVK_ADAM_SWEEP16_LIST(T, S));                      \
    CURVK_ELEMENTWISE int32_t curvk_adam_sweep8_list_##FMT(CURVK_ADAM_SWEEP8_LIST(T, S));                        \
    CURVK_ELEMENTWISE int32_t curvk_adam_sweep8b_list_##FMT(CURVK_ADAM_SWEEP8B_LIST(T, S));
CURVK_SWEEP(f64, double, double)
CURVK_SWEEP_SHORT(f32, float, float)
CURVK_SWEEP_SHORT(bf16, uint16_t, float)
CURVK_SWEEP_SHORT(f16, uint16_t, float)
#undef CURVK_SWEEP
#undef CURVK_SWEEP_SHORT

/* Arrays to codes, to nearest, and back. Unsigned codes are those of |x|. */
#define CURVK_QUANTIZE_LIST(GROUP)                                                                               \
    const float* const* x, uint8_t* const* codes, float* const* scale /* per GROUP */, const int64_t* sizes,     \
    int64_t count, int64_t is_signed /* [0, 1] */
#define CURVK_DEQUANTIZE_LIST(GROUP)                                                                             \
    float* const* x, const uint8_t* const* codes, const float* const* scale /* per GROUP */,                     \
    const int64_t* sizes, int64_t count, int64_t is_signed /* [0, 1] */
CURVK_API int32_t curvk_quantize8_list_f32(CURVK_QUANTIZE_LIST(32));
CURVK_API int32_t curvk_dequantize8_list_f32(CURVK_DEQUANTIZE_LIST(32));
CURVK_API int32_t curvk_quantize8b_list_f32(CURVK_QUANTIZE_LIST(256));
CURVK_API int32_t curvk_dequantize8b_list_f32(CURVK_DEQUANTIZE_LIST(256));

#endif
