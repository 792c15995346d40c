#include "cuda/optim_steps.cuh"

// A captured graph replays launches with the arguments they had. So a kernel of one thread reads the step's numbers from
// memory and forms the scalars there, and the steps read those.
namespace CURVK_LEVEL {
namespace {

template <class S>
__global__ void form_sgd_scalars(const double* at, CURVK_SGD_AT_SCALARS, SgdScalars<S>* out) {
    *out = sgd_scalars<S>(at[1], momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sgd_list(CURVK_SGD_AT_LIST(T, S), void* stream) {
    const Scratch<SgdScalars<S>> scalars("sgd_step_at", 1, stream);
    if (scalars.status) return scalars.status;
    if (const int32_t status = launch("sgd_step_at", form_sgd_scalars<S>, 1, 1, stream, at, momentum, dampening, weight_decay,
                                      nesterov, decoupled, maximize, first, grad_scale, scalars.data))
        return status;
    return sgd_rows<Format>(p, g, buf, origin, sizes, count, nesterov != 0, first != 0, SgdScalars<S>{}, scalars.data, stream);
}

template <class S>
__global__ void form_adam_scalars(const double* at, CURVK_ADAM_AT_SCALARS, AdamScalars<S>* out) {
    const At now = read_at(at);
    *out = adam_scalars<S>(now.step, now.lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t adam_list(CURVK_ADAM_AT_LIST(T, S), void* stream) {
    const Scratch<AdamScalars<S>> scalars("adam_step_at", 1, stream);
    if (scalars.status) return scalars.status;
    if (const int32_t status = launch("adam_step_at", form_adam_scalars<S>, 1, 1, stream, at, beta1, beta2, eps, weight_decay,
                                      decoupled, maximize, grad_scale, scalars.data))
        return status;
    return adam_rows<Format>(p, g, m, v, max_v, origin, sizes, count, AdamScalars<S>{}, scalars.data, stream);
}

// One thread: a pass over the window, a few hundred losses, takes microseconds.
__global__ void loss_rule(double* window, int64_t* stored, const double* loss, double* at, int64_t patience, int64_t period,
                          const LossFactors factors, bool guard) {
    apply_loss_rule(window, stored, *loss, at + 1, patience, period, factors, guard);
}

}  // namespace

#define CAPTURE(FMT, T, S, Format)                                                                                            \
    int32_t curvk_sgd_step_at_list_##FMT(CURVK_SGD_AT_LIST(T, S), void* stream) {                                             \
        return sgd_list<Format>(p, g, buf, origin, at, sizes, count, momentum, dampening, weight_decay, nesterov, decoupled,  \
                                maximize, first, grad_scale, stream);                                                         \
    }                                                                                                                         \
    int32_t curvk_adam_step_at_list_##FMT(CURVK_ADAM_AT_LIST(T, S), void* stream) {                                           \
        return adam_list<Format>(p, g, m, v, max_v, origin, at, sizes, count, beta1, beta2, eps, weight_decay, decoupled,     \
                                 maximize, grad_scale, stream);                                                               \
    }
CAPTURE(f32, float, float, F32)
CAPTURE(f64, double, double, F64)
CAPTURE(bf16, uint16_t, float, BF16)
CAPTURE(f16, uint16_t, float, F16)

int32_t curvk_loss_rule_f64(double* window, int64_t* stored, const double* loss, double* at, int64_t patience, int64_t period,
                            double overshoot_factor, double stagnation_factor, double stagnation_threshold, double min_lr,
                            double max_lr, int64_t guard, void* stream) {
    const LossFactors factors{overshoot_factor, stagnation_factor, stagnation_threshold, min_lr, max_lr};
    return launch("loss_rule", loss_rule, 1, 1, stream, window, stored, loss, at, patience, period, factors, guard != 0);
}

}  // namespace CURVK_LEVEL
