/* Eigenvalues and singular values of many small matrices: Jacobi's method, one matrix in each lane of a vector.
 * Matrices lie one behind the other, each in C order. The results of a matrix are a function of its elements alone: not
 * of its place or its neighbours, nor of level and threads.
 * A matrix is scaled by a power of two on its way in, its eigenvalues or singular values by the inverse on the way out; so
 * squares neither overflow nor vanish. One that holds a NaN or an infinity gives NaNs, and only for itself. Zeros come out
 * positive.
 * Jacobi's rotation of the pair p < q: t = sign(z) / (|z| + sqrt(1 + z^2)), z = (a_qq - a_pp) / (2 a_pq) (Rutishauser
 * 1966), then the two swapped where |a_qq| > |a_pp|; pairs by p + q and p, sweep after sweep until one has found nothing
 * to rotate, 40 at most.
 * Error class, with eps = 2^-23 or 2^-52, |.| the spectral norm, and m the larger side: measured below
 * 4 m eps |A| in the residuals and the values, 4 m eps in the orthogonality. */
#ifndef CURVK_LINALG_H
#define CURVK_LINALG_H

#include "curvk/base.h"

/* A[i] V[i] = V[i] diag(w[i]) for n symmetric d x d matrices, of which the lower triangle is read; w ascending, equal ones
 * in the order in which they come up; the columns of V orthonormal, the first of each column's largest components
 * positive. Two-sided Jacobi: a pair is left alone where |a_pq| <= eps max(sqrt(|a_pp a_qq|), eps 2^k), 2^k the power of
 * two below the largest element. */
#define CURVK_EIGH(T) const T* A, T* w, T* V, int64_t n, int64_t d /* [1, 64] */

/* A[i] = U[i] diag(s[i]) Vt[i] for n matrices p x d, with m = min(p, d): U p x m, s descending, Vt m x d; equal values in
 * the order in which they come up, the first of the largest components of each column of U positive. One-sided Jacobi
 * (Hestenes 1958) on the columns of A, or of its transpose where p < d: a pair is left alone where
 * |x.y| <= sqrt(rows) eps |x| |y|, or where one of the two vanishes beside the largest element (below 2^-41 or 2^-139 of
 * it). A column that vanishes gives its length as singular value and, as vector, the unit vector farthest from the others
 * made orthogonal to them (Gram & Schmidt, twice). */
#define CURVK_SVD(T) const T* A, T* U, T* s, T* Vt, int64_t n, int64_t p /* [1, 64] */, int64_t d /* [1, 64] */

CURVK_API int32_t curvk_eigh_batch_f32(CURVK_EIGH(float));
CURVK_API int32_t curvk_eigh_batch_f64(CURVK_EIGH(double));
CURVK_API int32_t curvk_svd_batch_f32(CURVK_SVD(float));
CURVK_API int32_t curvk_svd_batch_f64(CURVK_SVD(double));

#endif
