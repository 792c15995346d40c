/* Online learning with a kernel expansion f(x) = sum over slots s of coef_s k(x_s, x): n rows, one after another, each
 * predicted before it is learned. The slots hold support vectors; c outputs share them.
 * Shapes, in C order, with m the slots in use:
 *   K (n, m), k(row t, slot s) for the slots in use when the call starts;  G (n, n), k(row t, row r), read for r <= t
 *   y, f (n, c);  coef (c, capacity), of which the slots in use count;  placed, rows (n);  sums (2);  counts (4)
 *   u (n), uniform in [0, 1), for the rules 1 and 6
 *   matrix (capacity, capacity) for the rules 2, 4 and 5, (capacity) for rule 3, else null
 * counts <- slots in use, the oldest slot, rows done, and the length of the list `placed`: the slots into which rows
 * were put, each once, and in `rows` the row that each holds at the end. The caller puts these rows among its support
 * vectors before the next call. sums, matrix and the first two counts are state, at first 0.
 * For row t, with k_s = k(row t, slot s), k_tt = G[t, t], and g = l'(f) for each output:
 *   f <- sum of coef_s k_s
 *   loss 0 squared hinge  g = -2 y max(0, 1 - y f)      loss 3 squared     g = 2 (f - y)
 *        1 hinge          g = -y where 1 - y f > 0           4 perceptron  g = -y where y f <= 0
 *        2 logistic       g = -y / (1 + e^(y f))
 *   rule 0 append        if g != 0 for any output: a new slot with coefficients -lr g. The call ends before the row for
 *                        which there is no slot: it is predicted, not done.
 *        1 rbp           the same; with all slots in use, in place of slot floor(u m) (Cavallanti, Cesa-Bianchi &
 *                        Gentile 2007)
 *        2 forgetron     if y f <= 0 for any output: a new slot with coefficients y for these; with all slots in use,
 *                        in place of the oldest, r, before which all coefficients, the new ones too, are multiplied
 *                        with the largest p in (0, 1] for which Q + P <= 15/32 M, and Q <- Q + P. M counts mistakes;
 *                        P = sum over outputs of (p a)^2 + 2 p a - 2 (p a) (p b), a = |coef_r|,
 *                        b = sign(coef_r) f'(x_r), f' with the new coefficients: the self-tuned Forgetron (Dekel,
 *                        Shalev-Shwartz & Singer 2008), of several outputs that of their joint function. sums: Q, M.
 *                        matrix: k of slots and slots.
 *        3 bpas          if 1 - y f > 0 for any output: b = min(max(0, 1 - y f) / k_tt, C) y in a new slot; with all
 *                        slots in use, b + coef_r k_r / k_tt in place of the slot r with the least
 *                        (sum over outputs of coef_r^2) (k_rr - k_r^2 / k_tt): that of the least objective
 *                        |f' - f|^2 / 2 + C max(0, 1 - y f'), whose other terms are the same for all r.
 *                        Passive-aggressive on a budget (Wang & Vucetic 2010). Rows with k_tt = 0 teach nothing.
 *                        matrix: k_ss.
 *        4 projectron    if y f <= 0 for any output: v = L^-1 k, d = L^-T v = K^-1 k, e = k_tt - v.v; for these
 *                        outputs coef <- coef + y d where e <= max(threshold^2, 1e-10 k_tt) or all slots are in use,
 *                        else a new slot with coefficients y (Orabona, Keshet & Caputo 2009). matrix: L of the slots'
 *                        K = L L'.
 *        5 projectron++  the same; and for outputs with 0 < y f < 1, r = 1 - y f - sqrt(e) / threshold > 0 and
 *                        h = v.v > 0: coef <- coef + min((1 - y f) / h, 2 r / h, 1) y d
 *        6 bogd          coef <- decay coef; then, if g != 0 for any output, a new slot with -lr g or, with all m in
 *                        use, in place of slot floor(u m), the others multiplied with m / (m - 1); then each output's
 *                        coefficients times min(1, limit / max |coef|) (Zhao, Wang, Wu, Jin & Hoi 2012)
 *   A slot's coefficients are 0 for outputs that did not ask for it. A row whose prediction is not finite for some
 *   output is not learned.
 * Error class: sums over slots in 16 lanes (slot s in lane s mod 16) folded in a fixed tree, no contraction; exp as in
 * curvk/vmath.h. L L' = K and K d = k to some m 2^-53 of the largest k, whatever the condition of K. */
#ifndef CURVK_BUDGET_H
#define CURVK_BUDGET_H

#include "curvk/base.h"

#define CURVK_BUDGET_LEARN                                                                                       \
    const double* K, const double* G, const double* y, const double* u /* or null */, double* f, double* coef,   \
    double* matrix /* or null */, double* sums, int64_t* placed, int64_t* rows, int64_t* counts,                 \
    int64_t n /* [0, inf) */, int64_t c /* [1, inf) */, int64_t capacity /* [1, inf) */, int64_t rule /* [0, 6] */, \
    int64_t loss /* [0, 4] */, double lr /* (0, inf) */, double C /* (0, inf] */, double threshold /* [0, inf) */, \
    double decay /* [0, 1] */, double limit /* (0, inf] */

/* f <- coef K' for n rows, with the bits of the predictions above. K (n, m), coef (c, capacity). */
#define CURVK_BUDGET_PREDICT                                                                                     \
    const double* K, const double* coef, double* f, int64_t n /* [0, inf) */, int64_t m /* [0, inf) */,          \
    int64_t c /* [1, inf) */, int64_t capacity /* [1, inf) */

CURVK_API int32_t curvk_budget_learn_f64(CURVK_BUDGET_LEARN);
CURVK_API int32_t curvk_budget_predict_f64(CURVK_BUDGET_PREDICT);

#endif
