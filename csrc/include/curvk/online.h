/* Online learning in a feature space: n rows of features phi_t, one after the other, each predicted before it is learned.
 * Shapes, in C order: phi (n, k);  y, f (n, c), an output per column;  w (c, k);  inverse (c, k, k), symmetric, the
 * inverses of A;  counts (2).
 * For row t and each output, with g = l'(f) and u = A^-1 phi:
 *   f <- w.phi
 *   loss 0 squared hinge  max(0, 1 - y f)^2    g = -2 y max(0, 1 - y f)
 *        1 hinge          max(0, 1 - y f)      g = -y where 1 - y f > 0
 *        2 logistic       log(1 + e^(-y f))    g = -y / (1 + e^(y f))
 *        3 squared        (f - y)^2            g = 2 (f - y)
 *   rule 0 gradient   w <- w - lr g phi
 *        1 newton     A <- A + (curvature / 2) g^2 phi phi',  w <- w - lr g u,  then w <- w - h(w.phi) / (phi.u) u
 *                     with h(z) = sign(z) max(|z| - clip, 0): online Newton step (Hazan, Agarwal & Kale 2007), projected
 *        2 published  w <- w - lr g u,  w <- w - h(w.phi) / (phi.u + 1e-4) u,  then A <- A + (lr g)^2 phi phi': FORKS as
 *                     released (Wen et al. 2025); u is of the old A
 *        3 kons       before the prediction w <- w - h(w.phi) / (phi.u) u, so that f is within the clip; after it
 *                     A <- A + (curvature / 2) g^2 phi phi',  w <- w - lr g u (Calandriello, Lazaric & Valko 2017)
 *        4 ridge      A <- A + phi phi',  w <- w - lr (g / 2) u: least squares, recursively
 * Where g is 0 or not finite for an output, A and w of that output stay as they are. A row with another g for any output
 * is a loss row. The row whose loss makes their count reach `until` is predicted, counted and not learned, and the call
 * ends before it. With `pending` the first row's f is given and its loss was counted; it is learned and no more.
 * The inverse may be null for rule 0.
 * counts <- rows learned or passed over, loss rows counted.
 * Error class: dots over k in 16 lanes folded in a fixed tree, products with A^-1 in index order, no contraction; exp as
 * in curvk/vmath.h. */
#ifndef CURVK_ONLINE_H
#define CURVK_ONLINE_H

#include "curvk/base.h"

#define CURVK_ONLINE_LEARN                                                                                       \
    const double* phi, const double* y, double* f, double* w, double* inverse /* or null */, int64_t* counts,    \
    int64_t n /* [0, inf) */, int64_t k /* [1, inf) */, int64_t c /* [1, inf) */, int64_t loss /* [0, 3] */,     \
    int64_t rule /* [0, 4] */, double lr /* [0, inf) */, double clip /* [0, inf] */,                             \
    double curvature /* [0, inf) */, int64_t until /* [1, inf) */, int64_t pending /* [0, 1] */

CURVK_API int32_t curvk_online_learn_f64(CURVK_ONLINE_LEARN);

#endif
