// The scalars of the SGD and the Adam step, formed in double and rounded once.
#pragma once

#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/optim.h"
namespace {

template <class S>
struct SgdScalars {
    S inv_scale, coupled_decay, shrink, momentum, damped, lr;
};

template <class S>
SgdScalars<S> sgd_scalars(CURVK_SGD_SCALARS) {
    (void)nesterov;
    return {S((maximize ? -1.0 : 1.0) / grad_scale),
            S(decoupled ? 0.0 : weight_decay),
            S(decoupled ? 1.0 - lr * weight_decay : 1.0),
            S(momentum),
            S(first ? 1.0 : 1.0 - dampening),
            S(lr)};
}

template <class S>
struct AdamScalars {
    S inv_scale, coupled_decay, shrink, beta1, gain1, beta2, gain2, step_size, inv_root2, eps;
};

template <class S>
AdamScalars<S> adam_scalars(CURVK_ADAM_SCALARS) {
    return {S((maximize ? -1.0 : 1.0) / grad_scale),
            S(decoupled ? 0.0 : weight_decay),
            S(decoupled ? 1.0 - lr * weight_decay : 1.0),
            S(beta1),
            S(1.0 - beta1),
            S(beta2),
            S(1.0 - beta2),
            S(lr / (1.0 - power(beta1, step))),
            S(1.0 / sqrt(1.0 - power(beta2, step))),
            S(eps)};
}

}  // namespace
}  // namespace CURVK_LEVEL
