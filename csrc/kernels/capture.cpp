#include "core/optim_scalars.h"

// The steps are those of kernels/optim.cpp at the same level: on the CPU the numbers can be read before the loop.
namespace CURVK_LEVEL {

#define CAPTURE(FMT, T, S)                                                                                                  \
    int32_t curvk_sgd_step_at_list_##FMT(CURVK_SGD_AT_LIST(T, S)) {                                                         \
        return curvk_sgd_step_list_##FMT(p, g, buf, origin, sizes, count, at[1], momentum, dampening, weight_decay, nesterov, \
                                         decoupled, maximize, first, grad_scale);                                           \
    }                                                                                                                       \
    int32_t curvk_adam_step_at_list_##FMT(CURVK_ADAM_AT_LIST(T, S)) {                                                       \
        const At now = read_at(at);                                                                                         \
        return curvk_adam_step_list_##FMT(p, g, m, v, max_v, origin, sizes, count, now.step, now.lr, beta1, beta2, eps,     \
                                          weight_decay, decoupled, maximize, grad_scale);                                   \
    }
CAPTURE(f32, float, float)
CAPTURE(f64, double, double)
CAPTURE(bf16, uint16_t, float)
CAPTURE(f16, uint16_t, float)

int32_t curvk_loss_rule_f64(double* window, int64_t* stored, const double* loss, double* at, int64_t patience, int64_t period,
                            double overshoot_factor, double stagnation_factor, double stagnation_threshold, double min_lr,
                            double max_lr, int64_t guard) {
    apply_loss_rule(window, stored, *loss, at + 1, patience, period,
                    {overshoot_factor, stagnation_factor, stagnation_threshold, min_lr, max_lr}, guard != 0);
    return 0;
}

}  // namespace CURVK_LEVEL
