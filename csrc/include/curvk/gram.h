/* Gram products: K(X, Z) W for a kernel function k(x, z) of rows x of X (n, d) and z of Z (m, d), entry by entry and
 * never stored. With s = x . z, q = |x - z|^2 and the scalars scale, shape and degree:
 *   0 linear              s                              1 polynomial   (scale s + shape)^degree
 *   2 gaussian            exp(-scale q)                  3 laplacian    exp(-scale sqrt(q))
 *   4 matern32            (1 + r) exp(-r)                5 matern52     (1 + r + r^2 / 3) exp(-r),  r = scale sqrt(q)
 *   6 rational quadratic  (1 + scale q)^-shape           7 imq          (1 + scale q)^(-1/2)
 *   8 exponent            exp(-scale q^shape)            9 squared      q           10 distance     sqrt(q)
 *
 * Z is packed once (gram_pack) into panels of 64 bytes: element (j, k) of a panel's rows j lies at [panel][k][j], rows
 * padded with zeros to a multiple of 128 bytes of columns (32 float, 16 double), so `packed` has d times the padded m
 * elements and `norms` the padded m. With `centred` the mean of Z's finite elements is subtracted and kept in `center`,
 * which is zero otherwise; gram_matvec subtracts it from x. Pack centred for kernels 2 to 10 where d > 12, else not.
 *
 * q is a sum of squared differences where d <= 12; above, |x|^2 + |z|^2 - 2 s, and again of squared differences where
 * that is at most (|x|^2 + |z|^2) / 1024, or this sum overflows: so k(x, x) is exact.
 * Error class, with u = 2^-24 or 2^-53:
 *   q by differences   relative error at most (d + 2) u, and 2 u (|x| + |z|) |x - z| where centred (rounding x and z)
 *   q by norms         absolute error at most (2 d + 6) u (|x|^2 + |z|^2), norms of the centred rows
 *   k of a given q     relative error at most 8 u (1 + t), t the exponent's magnitude, which for kernel 8 is multiplied by
 *                      1 + |shape log q|; below the normal range 0
 *   sums over m        per output at most (32 + min(m, 2048) / 32 + m / 2048 + 2) u sum |k w|
 * x86-64-v3, v4 and armv8-a fuse multiplications and additions, v2 does not, and the sums' lanes are as wide as the
 * level's vectors: levels and the Numba twin differ within these bounds. The bits do not depend on the number of
 * threads, and those of a row of the result not on the other rows.
 * A row of x that holds NaN gives NaN in its row of the result.
 *
 * gram_select, for order statistics of distances: row i of x is row first + i of Z, and for the q of its pairs with the
 * rows behind it, counts[i] (4) <- number of q < low, q <= low, q < high, q <= high; found[i] (capacity) <- the
 * first of those with low < q < high. */
#ifndef CURVK_GRAM_H
#define CURVK_GRAM_H

#include "curvk/base.h"

#define CURVK_GRAM(FMT, T)                                                                                       \
    CURVK_API int32_t curvk_gram_pack_##FMT(const T* z, T* packed, T* norms, T* center, int64_t m /* [0, inf) */, \
                                            int64_t d /* [0, inf) */, int64_t centred /* [0, 1] */);             \
    /* out (n, c) <- K W, or out + K W; keep (n, m) <- K; w (m, c). Without w and out, c is 0. */                \
    CURVK_API int32_t curvk_gram_matvec_##FMT(                                                                   \
        const T* x, const T* packed, const T* norms, const T* center, const T* w /* or null */,                  \
        T* out /* or null */, T* keep /* or null */, int64_t n /* [0, inf) */, int64_t m /* [0, inf) */,         \
        int64_t d /* [0, inf) */, int64_t c /* [0, inf) */, int64_t kernel /* [0, 10] */,                        \
        double scale /* (-inf, inf) */, double shape /* (-inf, inf) */, int64_t degree /* [0, inf) */,           \
        int64_t accumulate /* [0, 1] */);                                                                        \
    CURVK_API int32_t curvk_gram_select_##FMT(                                                                   \
        const T* x, const T* packed, const T* norms, const T* center, T* found, int64_t* counts,                 \
        int64_t n /* [0, inf) */, int64_t m /* [0, inf) */, int64_t d /* [0, inf) */, int64_t first /* [0, inf) */, \
        double low /* (-inf, inf) */, double high /* (-inf, inf) */, int64_t capacity /* [0, inf) */);
CURVK_GRAM(f32, float)
CURVK_GRAM(f64, double)
#undef CURVK_GRAM

#endif
