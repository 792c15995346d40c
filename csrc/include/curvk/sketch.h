/* Sketches of matrices, and the low-rank changes of factorisations that hold them. All matrices in C order, all
 * arithmetic and all results in double. */
#ifndef CURVK_SKETCH_H
#define CURVK_SKETCH_H

#include "curvk/base.h"

/* Sparse Johnson-Lindenstrauss transform (Clarkson & Woodruff 2013 with one block: CountSketch; Kane & Nelson 2014):
 *   out <- out + S^T A,   A (n, d), out (s, d)
 * Row i of A is row r = first_row + i of the stream and of S. In each of `blocks` blocks of width w = s / blocks, rounded
 * down, it has one entry sigma / sqrt(blocks) in column h of the block, with
 *   h = floor((word >> 1) w / 2^31),   sigma = -1 if word is odd, else 1
 * and word number r of the noise stream (curvk/noise.h) of this seed and tensor, draw b for block b. So S does not depend
 * on how a stream is cut into calls. Error class: each element of out takes in its terms, c A_ij with c rounded, one by one
 * in the order of the rows, each product and sum rounded. */
#define CURVK_SJLT_KEYS                                                                                          \
    int64_t s /* [1, 1e9] */, int64_t blocks /* [1, 1e9] */, int64_t seed, int64_t tensor,                       \
    int64_t first_row /* [0, inf) */
#define CURVK_SJLT(T)                                                                                            \
    const T* A, double* out, int64_t n, int64_t d /* [0, inf) */, CURVK_SJLT_KEYS

/* out <- the rows first_row .. first_row + n of S, shape (n, s). */
#define CURVK_SJLT_ROWS double* out, int64_t n, CURVK_SJLT_KEYS

CURVK_API int32_t curvk_sjlt_f32(CURVK_SJLT(float));
CURVK_API int32_t curvk_sjlt_f64(CURVK_SJLT(double));
CURVK_API int32_t curvk_sjlt_rows_f64(CURVK_SJLT_ROWS);

/* The eigenvalues d (k) and eigenvectors V (m, k) of a symmetric matrix after a change of rank one, in place:
 *   diag(d) + rho z z^T = U diag(d') U^T,   d <- d' ascending,   V <- V U
 * (Bunch, Nielsen & Sorensen 1978; Gu & Eisenstat 1994). With |z| = 1 after scaling, entries with rho |z_i| <= 8 u norm
 * are left out, u = 2^-53 and norm = max(|d|, rho), and one of two neighbours where a rotation of the two makes its entry
 * zero and an element off the diagonal below that. The others' eigenvalues are the zeros of
 *   f(x) = 1 + rho sum_i z_i^2 / (d_i - x),
 * each as its distance from the nearer pole (the last one's from the pole below): rational steps of two poles within a
 * bracket, from the zero of f's two nearest terms and its remainder halfway between the poles, until |f| <= K u times the
 * sum of the magnitudes of its 1 + K terms or the step is below 2^-30 of the distance. Then z anew by Loewner's product, with
 * which U is orthogonal to rounding. The component of a vector along the old one it comes from is not negative.
 * Error class: |d' - exact|, |A V - V d'| and |V^T V - I| norm within 4 max(k, 4) eps norm. A NaN or an infinity in d or z
 * gives NaN throughout; one in V stays in its row. */
CURVK_API int32_t curvk_eigh_update_f64(const double* z, double* d, double* V, int64_t m /* [0, inf) */,
                                        int64_t k /* [1, 512] */, double rho /* (-inf, inf) */);

/* The thin QR factorisation Q (m, n), R (n, n) of a matrix after a change of rank one, in place, m >= n:
 *   Q R + u v^T = Q' R'
 * (Daniel, Gragg, Kaufman & Stewart 1976). With w = Q^T u and the part of u that is orthogonal to Q, orthogonalised twice
 * and left out where the second time takes away half of it, 2 n Givens rotations that leave the diagonal of R' at 0 or
 * above. Of R the upper triangle is read and written. Error class: |Q' R' - (Q R + u v^T)| within
 * 8 n eps (|R| + |u| |v|), |Q'^T Q' - I| grown by 8 n eps. Where an argument holds a NaN or an infinity both become NaN. */
CURVK_API int32_t curvk_qr_update_f64(const double* u, const double* v, double* Q, double* R, int64_t m /* [0, inf) */,
                                      int64_t n /* [1, inf) */);

#endif
