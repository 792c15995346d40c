/* Noise of one counter-based stream: z = f(seed, draw, tensor, index) for a distribution, the same on every machine.
 * Philox4x32-10 (Salmon et al. 2011) with the seed as key and the counter (block low, block high, tensor, draw), whose
 * last three take their lowest 32 bits. The words w0..w3 of 8 blocks make a tile of 32 words: (w0, w1) of blocks 0..7,
 * then (w2, w3) of blocks 0..7. `dist` says how words become elements (order and formulas in core/philox.h):
 *   0 normal       32 elements a tile, Box-Muller (1958) on 32 + 30 bits; |z| <= 6.77
 *   1 normal_fast  64 elements a tile, Box-Muller on 16 + 14 bits; |z| <= 4.86
 *   2 rademacher   1024 elements a tile, a bit each: +1 or -1
 *   3 uniform      32 elements a tile, multiples of 2^-24 in [0, 1)
 * z is a float; double arrays take it widened, 16-bit formats are computed in float and rounded once. Row r of a list
 * has the tensor word tensor[r], and its element i the index offset[r] + i, which must lie in [0, 2^63).
 * Error class of the transform: normal within 1.5e-6 of Box-Muller in exact arithmetic from the rounded u on,
 * normal_fast within 1e-4. */
#ifndef CURVK_NOISE_H
#define CURVK_NOISE_H

#include "curvk/base.h"

#define CURVK_STREAM int64_t seed, int64_t dist /* [0, 3] */
#define CURVK_KEYS const int64_t* tensor /* per row */, const int64_t* offset /* per row */
#define CURVK_KEY int64_t tensor, int64_t offset /* [0, inf) */

/* out <- z */
#define CURVK_FILL_LIST(T) T* const* out, CURVK_KEYS, const int64_t* sizes, int64_t count, int64_t draw, CURVK_STREAM

/* p <- (1 - decay) p + sum_j coefs[j] z(draws[j]); where |p| > threshold p stays. One pass whatever k. The sum is formed
 * first: of each four draws in order, then of these in order. Coefficients are rounded to the type of the arithmetic. */
#define CURVK_SEEDS                                                                                              \
    const int64_t* draws, const double* coefs, int64_t k /* [0, inf) */, double decay /* [0, 1] */,              \
    double threshold /* [0, inf] */, CURVK_STREAM
#define CURVK_AXPY_LIST(T) T* const* p, CURVK_KEYS, const int64_t* sizes, int64_t count, CURVK_SEEDS

/* The same out of place: out <- the value that axpy_seeds gives p. */
#define CURVK_SCRATCH_LIST(T) const T* const* p, T* const* out, CURVK_KEYS, const int64_t* sizes, int64_t count, CURVK_SEEDS

/* out[j] <- sum over all elements of v z(draws[j]), in double: 16 lanes per chunk of 32,768 elements folded in a fixed
 * tree, chunks added in index order. Error class: (n / 16 + 16) 2^-53 of the sum of magnitudes per chunk, plus the
 * number of chunks times 2^-53. */
#define CURVK_DOT_LIST(T)                                                                                        \
    const T* const* v, CURVK_KEYS, const int64_t* sizes, int64_t count, const int64_t* draws, double* out,       \
    int64_t k /* [0, inf) */, CURVK_STREAM

/* Reversible in place: on multiples of the quantum q (a power of two), while |p| stays below 2^24 q,
 *   p <- p + steps rint(scale z / q) q
 * has p <- p - steps rint(scale z / q) q as its exact inverse. Then, if update, with u uniform in [0, 1) from the same
 * draw of the tensor word with bit 28 turned (from the purpose "probe" to "rounding"),
 *   p <- p + floor((coef z - decay p) / q + u) q
 * which is stochastic rounding, unbiased within 2^-22 (q + |coef z| + |decay p|). */
#define CURVK_GRID_LIST(T)                                                                                       \
    T* const* p, CURVK_KEYS, const int64_t* sizes, int64_t count, double quantum /* (0, inf) */,                 \
    double scale /* (-inf, inf) */, int64_t steps, double coef /* (-inf, inf) */, double decay /* [0, 1] */,     \
    int64_t update /* [0, 1] */, int64_t draw, CURVK_STREAM

#define CURVK_NOISE(FMT, T)                                                                                      \
    CURVK_ELEMENTWISE int32_t curvk_noise_fill_list_##FMT(CURVK_FILL_LIST(T));                                   \
    CURVK_ELEMENTWISE int32_t curvk_noise_fill_##FMT(T* out, int64_t n, CURVK_KEY, int64_t draw, CURVK_STREAM);  \
    CURVK_ELEMENTWISE int32_t curvk_axpy_seeds_list_##FMT(CURVK_AXPY_LIST(T));                                   \
    CURVK_ELEMENTWISE int32_t curvk_axpy_seeds_##FMT(T* p, int64_t n, CURVK_KEY, CURVK_SEEDS);                   \
    CURVK_ELEMENTWISE int32_t curvk_noise_scratch_list_##FMT(CURVK_SCRATCH_LIST(T));                             \
    CURVK_ELEMENTWISE int32_t curvk_noise_scratch_##FMT(const T* p, T* out, int64_t n, CURVK_KEY, CURVK_SEEDS);  \
    CURVK_API int32_t curvk_dot_seeds_list_##FMT(CURVK_DOT_LIST(T));                                             \
    CURVK_API int32_t curvk_dot_seeds_##FMT(const T* v, int64_t n, CURVK_KEY, const int64_t* draws, double* out, \
                                            int64_t k /* [0, inf) */, CURVK_STREAM);
CURVK_NOISE(f32, float)
CURVK_NOISE(f64, double)
CURVK_NOISE(bf16, uint16_t)
CURVK_NOISE(f16, uint16_t)
#undef CURVK_NOISE

CURVK_ELEMENTWISE int32_t curvk_noise_grid_list_f32(CURVK_GRID_LIST(float));
CURVK_ELEMENTWISE int32_t curvk_noise_grid_f32(float* p, int64_t n, CURVK_KEY, double quantum /* (0, inf) */,
                                           double scale /* (-inf, inf) */, int64_t steps, double coef /* (-inf, inf) */,
                                           double decay /* [0, 1] */, int64_t update /* [0, 1] */, int64_t draw,
                                           CURVK_STREAM);

/* Philox4x32-10 itself, 32-bit words in 64-bit integers: out[4 i .. 4 i + 3] <- the words of the counter
 * counter[4 i .. 4 i + 3] under key[0], key[1]. For known answers and for streams of one's own. */
CURVK_API int32_t curvk_philox4x32_i64(const int64_t* counter, const int64_t* key, int64_t* out, int64_t n);

#endif
