/* Gradient probes: glass density, the Alice step, and the perturbation of SAM. T is the storage of parameters and
 * gradients; S, the type of the arithmetic and the states, is T or, for the 16-bit formats, float. Scalar expressions are
 * evaluated in double and rounded once to S.
 * Error class, where no other is given: correctly rounded operations in the order written, no contraction. */
#ifndef CURVK_CURVATURE_H
#define CURVK_CURVATURE_H

#include "curvk/base.h"

/* Where Alice evaluates a gradient:  p <- lookahead + scale z,  z = +1 or -1 from curvk's noise (curvk/noise.h,
 * distribution 2). With scale 0 the look-ahead point itself. */
#define CURVK_LOOKAHEAD_LIST(T, S)                                                                               \
    T* const* p, const S* const* lookahead, const int64_t* tensor /* per row */, const int64_t* offset /* per row */, \
    const int64_t* sizes, int64_t count, double scale /* (-inf, inf) */, int64_t draw, int64_t seed

/* The Alice step (Duersch et al. 2024, arXiv 2411.16914; in a form without branches).
 *   g, g+, g- <- g / grad_scale
 *   at a sample step, that is with g_plus and g_minus, from gradients at lookahead + sigma z and lookahead - sigma z:
 *     glass   <- rho + beta3 (glass - rho),  rho = 2 ((g+ + g-) / 2 - g)^2 / sigma
 *     hessian <- x + beta3 (hessian - x),    hess 1: x = |g+ - g-| / (2 sigma) + l2
 *                                            hess 2: x = ((g+ - g-) / (2 sigma))^2 + l2^2
 *                                            hess 3: x = -(g+ - g) (g- - g) / sigma^2
 *   exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) g^2;  then  g <- g + l1 sign(lookahead) + l2 lookahead,  sign(0) = 1
 *   exp_avg <- g + beta1 (exp_avg - g)
 *   if move, with a = |exp_avg|, b = a + eps, k = 3/(4 pi) glass, and h = 0 | hessian | sqrt(max(hessian, 0)) |
 *   sqrt(max(hessian, 0)) + l2 for hess 0 | 1 | 2 | 3:
 *     q <- b / d,  d = k + h b + sqrt(k (k + 2 h b)) + eps b, then between the bounds (a NaN takes the upper one):
 *       limit 0 (adam):  lr_min / r <= q <= lr_max / r,  r = sqrt(exp_avg_sq) + eps;   delta = -exp_avg q
 *       limit 1 (sgdm):  lr_min <= q <= lr_max,  r = 1;                                delta = -exp_avg q
 *       limit 2 (fixed): lr_min <= a q <= lr_max,  r = 1;                              delta = -sign(exp_avg) a q
 *     where fractions are compared by products: q < lr_max / r where b r < lr_max d
 *     lookahead <- center + omega delta;  center <- center + phi delta
 *   p <- center
 * glass and hessian may be left out (they count as 0), hessian only with hess 0. With one of g_plus and g_minus alone the
 * step is none that samples. lr_min above lr_max is the caller's mistake. */
#define CURVK_ALICE_SCALARS                                                                                      \
    double beta1 /* [0, 1) */, double beta2 /* [0, 1) */, double beta3 /* [0, 1) */, double sigma /* (0, inf) */, \
    double eps /* [0, inf) */, double l1 /* [0, inf) */, double l2 /* [0, inf) */, double lr_min /* [0, inf) */, \
    double lr_max /* [0, inf) */, double phi /* (0, 2) */, double omega /* (0, inf) */, int64_t hess /* [0, 3] */, \
    int64_t limit /* [0, 2] */, int64_t move /* [0, 1] */, double grad_scale /* (0, inf) */

#define CURVK_ALICE_LIST(T, S)                                                                                   \
    T* const* p, const T* const* g, S* const* exp_avg, S* const* glass /* or null */, S* const* hessian /* or null */, \
    S* const* exp_avg_sq, S* const* center, S* const* lookahead, const T* const* g_plus /* or null */,           \
    const T* const* g_minus /* or null */, const int64_t* sizes, int64_t count, CURVK_ALICE_SCALARS

/* The same with exp_avg, glass, hessian and exp_avg_sq in 8 bits, as curvk/sweep.h says: exp_avg and, for hess 3, hessian
 * signed, the others unsigned, rounded with the words r0, r1, r2, r3 of their groups in this order. glass and hessian are
 * written at sample steps alone. */
#define CURVK_ALICE8_LIST(T, S)                                                                                  \
    T* const* p, const T* const* g, uint8_t* const* exp_avg, float* const* exp_avg_scale /* per 32 */,           \
    uint8_t* const* glass /* or null */, float* const* glass_scale /* per 32 */ /* or null */,                   \
    uint8_t* const* hessian /* or null */, float* const* hessian_scale /* per 32 */ /* or null */,               \
    uint8_t* const* exp_avg_sq, float* const* exp_avg_sq_scale /* per 32 */, S* const* center,                   \
    S* const* lookahead, const T* const* g_plus /* or null */, const T* const* g_minus /* or null */,            \
    const int64_t* tensor /* per row */, const int64_t* offset /* per row */, const int64_t* sizes, int64_t count, \
    CURVK_ALICE_SCALARS, int64_t draw, int64_t seed

/* What the step's model says of a step s = fraction |delta| in each element, delta as in the Alice step:
 * out[0] <- number of elements whose q (limit 2: a q) lay strictly between its bounds,
 * out[1] <- sum of -a s + h s^2 / 2 + sqrt(2 / (3 pi)) sqrt(glass) s^1.5, the predicted change of the loss.
 * Terms in S; sums in double, 16 lanes per chunk of 32,768 elements folded in a fixed tree, chunks added in order. */
#define CURVK_ALICE_MODEL_LIST(S)                                                                                \
    const S* const* exp_avg, const S* const* glass /* or null */, const S* const* hessian /* or null */,         \
    const S* const* exp_avg_sq, const int64_t* sizes, int64_t count, double eps /* [0, inf) */,                  \
    double l2 /* [0, inf) */, double lr_min /* [0, inf) */, double lr_max /* [0, inf) */,                        \
    double fraction /* [0, inf) */, int64_t hess /* [0, 3] */, int64_t limit /* [0, 2] */, double* out

/* Sums over all elements of (1) ((g+ + g-) / 2 - g)^2, (2) (c+^2 + c-^2) / 2, (3) -c+ c-, (4) g^2, where c+- = g+- - g.
 * Computed in double, summed as in alice_model: relative error of each sum, against the sum of magnitudes, at most
 * (n / 16 + 16) 2^-53 per chunk plus the number of chunks times 2^-53, and 4 2^-53 for the terms. */
#define CURVK_GLASS_SUMS_LIST(T)                                                                                 \
    const T* const* g, const T* const* g_plus, const T* const* g_minus, const int64_t* sizes, int64_t count, double* out

/* Running moments of the glass density and of the squared row norm of the Hessian (Welford 1962):
 *   rho = 2 ((g+ + g-) / 2 - g)^2 / sigma,  h2 = -(g+ - g) (g- - g) / sigma^2
 *   d = x - mean;  mean <- mean + d / sample;  m2 <- m2 + d (x - mean)      for both */
#define CURVK_GLASS_MOMENTS_LIST(T, S)                                                                           \
    const T* const* g, const T* const* g_plus, const T* const* g_minus, S* const* rho, S* const* rho_m2,         \
    S* const* h2, S* const* h2_m2, const int64_t* sizes, int64_t count, int64_t sample /* [1, inf) */,           \
    double sigma /* (0, inf) */

/* SAM's ascent (Foret et al. 2021; adaptive: ASAM, Kwon et al. 2021):
 *   w = p;  p <- w + scale (t^2 g),  t = 1 or, adaptive, |w| + eta;  the old w goes to `saved` or, without it, into g. */
#define CURVK_SAM_LIST(T)                                                                                        \
    T* const* p, T* const* g, T* const* saved /* or null */, const int64_t* sizes, int64_t count,                \
    double scale /* (-inf, inf) */, int64_t adaptive /* [0, 1] */, double eta /* [0, inf) */

/* sum_squares (curvk/optim.h) of ASAM's (|p| + eta) g; out[1] <- 1 if an element of p or g is not finite. */
#define CURVK_ASAM_NORM_LIST(T)                                                                                  \
    const T* const* p, const T* const* g, const int64_t* sizes, int64_t count, double eta /* [0, inf) */,        \
    double scale /* (0, inf) */, double* out

#define CURVK_CURVATURE(FMT, T, S)                                                                               \
    CURVK_ELEMENTWISE int32_t curvk_alice_lookahead_list_##FMT(CURVK_LOOKAHEAD_LIST(T, S));                      \
    CURVK_ELEMENTWISE int32_t curvk_alice_step_list_##FMT(CURVK_ALICE_LIST(T, S));                               \
    CURVK_API int32_t curvk_glass_sums_list_##FMT(CURVK_GLASS_SUMS_LIST(T));                                     \
    CURVK_ELEMENTWISE int32_t curvk_glass_moments_list_##FMT(CURVK_GLASS_MOMENTS_LIST(T, S));                    \
    CURVK_ELEMENTWISE int32_t curvk_sam_perturb_list_##FMT(CURVK_SAM_LIST(T));                                   \
    CURVK_API int32_t curvk_asam_sum_squares_list_##FMT(CURVK_ASAM_NORM_LIST(T));
CURVK_CURVATURE(f32, float, float)
CURVK_CURVATURE(f64, double, double)
CURVK_CURVATURE(bf16, uint16_t, float)
CURVK_CURVATURE(f16, uint16_t, float)
#undef CURVK_CURVATURE

CURVK_ELEMENTWISE int32_t curvk_alice_step8_list_f32(CURVK_ALICE8_LIST(float, float));
CURVK_ELEMENTWISE int32_t curvk_alice_step8_list_bf16(CURVK_ALICE8_LIST(uint16_t, float));
CURVK_ELEMENTWISE int32_t curvk_alice_step8_list_f16(CURVK_ALICE8_LIST(uint16_t, float));

CURVK_API int32_t curvk_alice_model_list_f32(CURVK_ALICE_MODEL_LIST(float));
CURVK_API int32_t curvk_alice_model_list_f64(CURVK_ALICE_MODEL_LIST(double));

#endif
