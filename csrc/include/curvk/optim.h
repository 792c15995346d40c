/* Fused optimizer steps. T is the storage of p and g; S, the type of the arithmetic and the states, is T or, for the
 * 16-bit formats, float. Every scalar expression below is evaluated in double and rounded once to S.
 * Error class of the steps: correctly rounded operations in the order written, no contraction. */
#ifndef CURVK_OPTIM_H
#define CURVK_OPTIM_H

#include "curvk/base.h"

/* SGD with momentum (Polyak 1964; Nesterov form of Sutskever et al. 2013; conventions of torch.optim.SGD).
 *   g <- g / grad_scale (negated if maximize);  g <- g + weight_decay p  or, decoupled, p <- (1 - lr weight_decay) p
 *   buf <- momentum buf + (1 - dampening) g     (buf <- g if first)
 *   p <- p - lr d,  d = g without buf, buf with it, g + momentum buf with nesterov
 * With origin the step starts from it: p is written without being read. So SAM restores its weights and steps at once. */
#define CURVK_SGD_SCALARS                                                                                        \
    double lr /* [0, inf) */, double momentum /* [0, inf) */, double dampening /* (-inf, inf) */,                \
    double weight_decay /* [0, inf) */, int64_t nesterov /* [0, 1] */, int64_t decoupled /* [0, 1] */,           \
    int64_t maximize /* [0, 1] */, int64_t first /* [0, 1] */, double grad_scale /* (0, inf) */

#define CURVK_SGD_LIST(T, S)                                                                                     \
    T* const* p, const T* const* g, S* const* buf /* or null */, const T* const* origin /* or null */,           \
    const int64_t* sizes, int64_t count, CURVK_SGD_SCALARS

#define CURVK_SGD(FMT, T, S)                                                                                     \
    CURVK_ELEMENTWISE int32_t curvk_sgd_step_list_##FMT(CURVK_SGD_LIST(T, S));                                   \
    CURVK_ELEMENTWISE int32_t curvk_sgd_step_##FMT(T* p, const T* g, S* buf /* or null */, const T* origin /* or null */, \
                                                   int64_t n, CURVK_SGD_SCALARS);
CURVK_SGD(f32, float, float)
CURVK_SGD(f64, double, double)
CURVK_SGD(bf16, uint16_t, float)
CURVK_SGD(f16, uint16_t, float)
#undef CURVK_SGD

/* Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) with decoupled, AMSGrad (Reddi et al. 2018) with max_v.
 *   g <- g / grad_scale (negated if maximize);  g <- g + weight_decay p  or, decoupled, p <- (1 - lr weight_decay) p
 *   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  max_v <- max(max_v, v)
 *   p <- p - (lr / (1 - beta1^step)) m / (sqrt(v or max_v) / sqrt(1 - beta2^step) + eps)
 * origin as in SGD. */
#define CURVK_ADAM_SCALARS                                                                                       \
    int64_t step /* [1, inf) */, double lr /* [0, inf) */, double beta1 /* [0, 1) */, double beta2 /* [0, 1) */, \
    double eps /* [0, inf) */, double weight_decay /* [0, inf) */, int64_t decoupled /* [0, 1] */,               \
    int64_t maximize /* [0, 1] */, double grad_scale /* (0, inf) */

#define CURVK_ADAM_LIST(T, S)                                                                                    \
    T* const* p, const T* const* g, S* const* m, S* const* v, S* const* max_v /* or null */,                     \
    const T* const* origin /* or null */, const int64_t* sizes, int64_t count, CURVK_ADAM_SCALARS

#define CURVK_ADAM(FMT, T, S)                                                                                    \
    CURVK_ELEMENTWISE int32_t curvk_adam_step_list_##FMT(CURVK_ADAM_LIST(T, S));                                 \
    CURVK_ELEMENTWISE int32_t curvk_adam_step_##FMT(T* p, const T* g, S* m, S* v, S* max_v /* or null */,      \
                                                    const T* origin /* or null */, int64_t n, CURVK_ADAM_SCALARS);
CURVK_ADAM(f32, float, float)
CURVK_ADAM(f64, double, double)
CURVK_ADAM(bf16, uint16_t, float)
CURVK_ADAM(f16, uint16_t, float)
#undef CURVK_ADAM

/* Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2), with decoupled weight decay.
 *   g <- g / grad_scale (negated if maximize);  c = beta1 m + (1 - beta1) g
 *   p <- (1 - lr weight_decay) p - lr sign(c);  m <- beta2 m + (1 - beta2) g
 * sign(0) is 0, sign(NaN) is NaN. origin as in SGD. */
#define CURVK_LION_SCALARS                                                                                       \
    double lr /* [0, inf) */, double beta1 /* [0, 1) */, double beta2 /* [0, 1) */,                              \
    double weight_decay /* [0, inf) */, int64_t maximize /* [0, 1] */, double grad_scale /* (0, inf) */

#define CURVK_LION_LIST(T, S)                                                                                    \
    T* const* p, const T* const* g, S* const* m, const T* const* origin /* or null */, const int64_t* sizes,     \
    int64_t count, CURVK_LION_SCALARS

#define CURVK_LION(FMT, T, S)                                                                                    \
    CURVK_ELEMENTWISE int32_t curvk_lion_step_list_##FMT(CURVK_LION_LIST(T, S));                                 \
    CURVK_ELEMENTWISE int32_t curvk_lion_step_##FMT(T* p, const T* g, S* m, const T* origin /* or null */,       \
                                                    int64_t n, CURVK_LION_SCALARS);
CURVK_LION(f32, float, float)
CURVK_LION(f64, double, double)
CURVK_LION(bf16, uint16_t, float)
CURVK_LION(f16, uint16_t, float)
#undef CURVK_LION

/* Sum of squares of all elements times scale^2, in double: 16 lanes per chunk of 32,768 elements folded in a fixed
 * tree, chunks added in index order. out[0] <- the sum, out[1] <- 1 if any element is not finite, else 0.
 * Error class: relative error of the sum at most (n / 16 + 16) 2^-53 per chunk, plus the number of chunks times 2^-53. */
#define CURVK_NORM_LIST(T) const T* const* x, const int64_t* sizes, int64_t count, double scale /* (0, inf) */, double* out
#define CURVK_NORM(FMT, T)                                                                                       \
    CURVK_API int32_t curvk_sum_squares_list_##FMT(CURVK_NORM_LIST(T));                                          \
    CURVK_API int32_t curvk_sum_squares_##FMT(const T* x, int64_t n, double scale /* (0, inf) */, double* out);
CURVK_NORM(f32, float)
CURVK_NORM(f64, double)
CURVK_NORM(bf16, uint16_t)
CURVK_NORM(f16, uint16_t)
#undef CURVK_NORM

/* A window of the last `patience` losses and AdamZ's statistics over it (Zaznov et al. 2024, arXiv 2411.15375).
 * window is a ring of `patience` doubles, stored[0] >= 0 the number of losses ever stored. A NaN loss stores nothing and
 * leaves out = {0, 0, 0}. Otherwise, once the ring is full:
 *   out[0] <- 1 if loss >= every loss in the window;  out[1], out[2] <- population variance of the newest
 *   min(period, patience) losses and of all of them, in two passes about the newest loss. Before that out[0] is 0. */
CURVK_API int32_t curvk_loss_window_f64(double* window, int64_t* stored, double* out, int64_t patience /* [1, inf) */,
                                        int64_t period /* [1, inf) */, double loss);

#endif
