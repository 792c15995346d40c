/* SV-CMA-ES (Braun, Lange & Toussaint 2024, arXiv 2410.10390): n particles, each the mean of a CMA-ES (Hansen 2016, arXiv
 * 1604.00772) of popsize samples in d dimensions; a kernel repels the means. Densities are maximised.
 * Row i of every array belongs to particle i and, but for the centre, is computed from row i alone. Shapes, in C order:
 *   sigma (n);  x, centred, p_sigma, p_c, D, shift, drive, repulsion (n, d);  columns, products (n, c) with c > d;
 *   C, B, A (n, d, d);  values, order (n, popsize);  z, y, candidates (n, popsize, d);  weights (popsize);
 *   work (n, 2 d + popsize)
 * C = B diag(D^2) B^T with eigenvectors in the columns of B; row k of A is D_k times column k of B.
 * Error class: correctly rounded operations, sums in index order, no contraction; exp within 0.85 ulp (curvk/vmath.h). */
#ifndef CURVK_STEIN_H
#define CURVK_STEIN_H

#include "curvk/base.h"

#define CURVK_STEIN_SIZES int64_t n, int64_t d /* [1, inf) */

/* From C's eigenvalues w (n, d), ascending, and B:
 *   w <- w + max(0, w_d / condition - w_1), the same on C's diagonal;  D <- sqrt(w), A <- diag(D) B^T
 * and before that, if renormalise, the gauge: with a the power of two that brings the mean of w / a^2 into [1, 4),
 *   w <- w / a^2, C <- C / a^2, p_c <- p_c / a, sigma <- sigma a
 * under which the samples and all later x keep their bits. Where the mean is not finite and positive a is 1. */
#define CURVK_STEIN_FACTOR(T)                                                                                    \
    const T* w, const T* B, T* C, T* sigma, T* p_c, T* D, T* A, CURVK_STEIN_SIZES, double condition /* [1, inf] */, \
    int64_t renormalise /* [0, 1] */

/* y_k <- A^T z_k,  candidates_k <- x + sigma y_k */
#define CURVK_STEIN_SAMPLE(T)                                                                                    \
    const T* x, const T* sigma, const T* A, const T* z, T* y, T* candidates, CURVK_STEIN_SIZES,                  \
    int64_t popsize /* [1, inf) */

/* order <- the samples by descending value, equal values by index, NaN last;  shift <- sum over k < mu of weights_k
 * y_order(k). Where every value is NaN: order <- -1, shift <- 0. */
#define CURVK_STEIN_SHIFT(T)                                                                                     \
    const T* y, const double* values, const T* weights, int64_t* order, T* shift, CURVK_STEIN_SIZES,             \
    int64_t popsize /* [1, inf) */, int64_t mu /* [1, inf) */

/* The repulsion around a Gram product (curvk/gram.h), for a kernel k2 = -2 k' / f of the distance:
 *   center   centred <- x - the mean of x, summed in double in the particles' order; columns <- it, in the first d columns
 *   repel    repulsion <- weight (centred products_d - products), with products = K2 columns and columns_d = 1,
 * which is a R where weight is a f / n. */
#define CURVK_STEIN_CENTER(T)                                                                                    \
    const T* x, T* centred, T* columns, CURVK_STEIN_SIZES, int64_t c /* [2, inf) */
#define CURVK_STEIN_REPEL(T)                                                                                     \
    const T* centred, const T* products, T* repulsion, CURVK_STEIN_SIZES, int64_t c /* [2, inf) */,              \
    double weight /* (-inf, inf) */

/* With e = drive / sigma or, without it, shift, and e' = e + repulsion / sigma; path is e' if in_paths, else e:
 *   x       <- x + sigma e'
 *   p_sigma <- (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) C^(-1/2) path
 *   p_c     <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) path,  h = 1 if |p_sigma| < limit, else 0
 *   C       <- (1 - c_1 - c_mu sum(weights) + (1 - h) c_1 c_c (2 - c_c)) C + c_1 p_c p_c^T + c_mu sum_k v_k y_k y_k^T
 *   sigma   <- sigma exp(c_sigma / d_sigma (|p_sigma| / chi - 1)), between sigma_min and sigma_max
 * where y_k, z_k are the samples in the order given and v_k is weights_k or, if that is negative, weights_k d / |z_k|^2
 * (0 where z_k is 0). C is read and written as a symmetric matrix by its lower triangle. A particle whose order is -1,
 * or whose x would not be finite, keeps all it has: no other one ever meets a NaN of its. work is scratch. */
#define CURVK_STEIN_ADAPT(T)                                                                                     \
    const T* y, const T* z, const int64_t* order, const T* weights, const T* shift, const T* drive /* or null */, \
    const T* repulsion /* or null */, const T* B, const T* D, const T* A, T* x, T* sigma, T* C, T* p_sigma, T* p_c, \
    T* work, CURVK_STEIN_SIZES, int64_t popsize /* [1, inf) */, double mu_eff /* (0, inf) */,                    \
    double c_sigma /* (0, 1) */, double d_sigma /* (0, inf) */, double c_c /* (0, 1] */, double c_1 /* [0, 1] */, \
    double c_mu /* [0, 1] */, double chi /* (0, inf) */, double limit /* [0, inf] */, double sigma_min /* [0, inf) */, \
    double sigma_max /* (0, inf] */, int64_t in_paths /* [0, 1] */

#define CURVK_STEIN(FMT, T)                                                                                      \
    CURVK_API int32_t curvk_stein_factor_##FMT(CURVK_STEIN_FACTOR(T));                                           \
    CURVK_API int32_t curvk_stein_sample_##FMT(CURVK_STEIN_SAMPLE(T));                                           \
    CURVK_API int32_t curvk_stein_shift_##FMT(CURVK_STEIN_SHIFT(T));                                             \
    CURVK_API int32_t curvk_stein_center_##FMT(CURVK_STEIN_CENTER(T));                                           \
    CURVK_API int32_t curvk_stein_repel_##FMT(CURVK_STEIN_REPEL(T));                                             \
    CURVK_API int32_t curvk_stein_adapt_##FMT(CURVK_STEIN_ADAPT(T));
CURVK_STEIN(f32, float)
CURVK_STEIN(f64, double)
#undef CURVK_STEIN

#endif
