/* Steps whose number and learning rate lie in memory, so that a captured CUDA graph steps on with new ones each time it is
 * replayed, and AdamZ's rule that changes the rate there. `at` = {number of the step counting from 1, learning rate}.
 * T is the storage of p and g; S, the type of the arithmetic and the states, is T or, for the 16-bit formats, float.
 * Error class of the steps: that of curvk/optim.h, and the same bits as its steps with these numbers.
 *
 * What lies in `at` is not checked, since a device's memory cannot be looked at. A learning rate that is NaN makes p NaN,
 * a negative one steps the other way. Adam's number of a step is rounded down; where it is NaN, below 1 or above 2^53, p
 * becomes NaN. The states are those of any other step. */
#ifndef CURVK_CAPTURE_H
#define CURVK_CAPTURE_H

#include "curvk/base.h"

/* curvk_sgd_step with lr = at[1]; at[0] is not looked at. */
#define CURVK_SGD_AT_SCALARS                                                                                     \
    double momentum /* [0, inf) */, double dampening /* (-inf, inf) */, double weight_decay /* [0, inf) */,      \
    int64_t nesterov /* [0, 1] */, int64_t decoupled /* [0, 1] */, int64_t maximize /* [0, 1] */,                \
    int64_t first /* [0, 1] */, double grad_scale /* (0, inf) */

#define CURVK_SGD_AT_LIST(T, S)                                                                                  \
    T* const* p, const T* const* g, S* const* buf /* or null */, const T* const* origin /* or null */,           \
    const double* at /* with the tables */, const int64_t* sizes, int64_t count, CURVK_SGD_AT_SCALARS

#define CURVK_SGD_AT(FMT, T, S)                                                                                  \
    CURVK_ELEMENTWISE int32_t curvk_sgd_step_at_list_##FMT(CURVK_SGD_AT_LIST(T, S));                             \
    CURVK_ELEMENTWISE int32_t curvk_sgd_step_at_##FMT(T* p, const T* g, S* buf /* or null */,                    \
                                                      const T* origin /* or null */, const double* at, int64_t n, \
                                                      CURVK_SGD_AT_SCALARS);
CURVK_SGD_AT(f32, float, float)
CURVK_SGD_AT(f64, double, double)
CURVK_SGD_AT(bf16, uint16_t, float)
CURVK_SGD_AT(f16, uint16_t, float)
#undef CURVK_SGD_AT

/* curvk_adam_step with step = at[0] and lr = at[1]. */
#define CURVK_ADAM_AT_SCALARS                                                                                    \
    double beta1 /* [0, 1) */, double beta2 /* [0, 1) */, double eps /* [0, inf) */,                             \
    double weight_decay /* [0, inf) */, int64_t decoupled /* [0, 1] */, int64_t maximize /* [0, 1] */,           \
    double grad_scale /* (0, inf) */

#define CURVK_ADAM_AT_LIST(T, S)                                                                                 \
    T* const* p, const T* const* g, S* const* m, S* const* v, S* const* max_v /* or null */,                     \
    const T* const* origin /* or null */, const double* at /* with the tables */, const int64_t* sizes,          \
    int64_t count, CURVK_ADAM_AT_SCALARS

#define CURVK_ADAM_AT(FMT, T, S)                                                                                 \
    CURVK_ELEMENTWISE int32_t curvk_adam_step_at_list_##FMT(CURVK_ADAM_AT_LIST(T, S));                           \
    CURVK_ELEMENTWISE int32_t curvk_adam_step_at_##FMT(T* p, const T* g, S* m, S* v, S* max_v /* or null */,     \
                                                       const T* origin /* or null */, const double* at, int64_t n, \
                                                       CURVK_ADAM_AT_SCALARS);
CURVK_ADAM_AT(f32, float, float)
CURVK_ADAM_AT(f64, double, double)
CURVK_ADAM_AT(bf16, uint16_t, float)
CURVK_ADAM_AT(f16, uint16_t, float)
#undef CURVK_ADAM_AT

/* AdamZ's rule for the learning rate at[1] (Zaznov et al. 2024, arXiv 2411.15375). The loss goes into the window as
 * curvk_loss_window_f64 says, which gives highest, short and long (its out[0], out[1], out[2]; 0 before the window is
 * full and for a NaN loss). Then
 *   lr <- overshoot_factor lr    if highest
 *   lr <- stagnation_factor lr   if short < stagnation_threshold^2 long and not (guard and the losses fall)
 *   lr <- min(max(lr, min_lr), max_lr)
 * The losses fall if the mean of the newest `period` is below that of as many before them, or as many as there are;
 * never with period >= patience. Up to 128 losses are summed in the order of NumPy's mean, more in parts of 128.
 * An lr outside [0, inf) stays as it is. at[0] is not looked at. A stored[0] below 0 or of 2^63 - 1 leaves all as it was. */
CURVK_API int32_t curvk_loss_rule_f64(double* window, int64_t* stored, const double* loss, double* at,
                                      int64_t patience /* [1, inf) */, int64_t period /* [1, inf) */,
                                      double overshoot_factor /* (0, 1) */, double stagnation_factor /* (1, inf) */,
                                      double stagnation_threshold /* [0, inf) */, double min_lr /* (0, inf) */,
                                      double max_lr /* (0, inf) */, int64_t guard /* [0, 1] */);

#endif
