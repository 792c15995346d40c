// What the optimizer steps of the CPU and of CUDA share: scalars, formed in double and rounded once, an element's
// arithmetic, and the loss window.
#pragma once

#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/capture.h"
#include "curvk/optim.h"
namespace {

template <class S>
struct SgdScalars {
    S inv_scale, coupled_decay, shrink, momentum, damped, lr;

    CURVK_HD S mixed(S old, S grad) const { return momentum * old + damped * grad; }
    CURVK_HD S direction(S mixed, S grad, bool nesterov) const { return nesterov ? grad + momentum * mixed : mixed; }
};

template <class S>
CURVK_HD SgdScalars<S> sgd_scalars(CURVK_SGD_SCALARS) {
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

// An element's moments, from g / grad_scale. `top` is amsgrad's maximum, which then takes the second moment's place.
template <bool amsgrad, class S>
CURVK_HD inline S adam_moments(S grad, S& first, S& second, S& top, const AdamScalars<S>& s) {
    first = s.beta1 * first + s.gain1 * grad;
    second = s.beta2 * second + s.gain2 * (grad * grad);
    if (!amsgrad) return second;
    return top = second > top || second != second ? second : top;  // a NaN on either side stays, as in torch.maximum
}

template <class S>
CURVK_HD inline S adam_param(S param, S first, S second, const AdamScalars<S>& s) {
    return param * s.shrink - s.step_size * first / (root(second) * s.inv_root2 + s.eps);
}

template <class S>
CURVK_HD AdamScalars<S> adam_scalars(CURVK_ADAM_SCALARS) {
    return {S((maximize ? -1.0 : 1.0) / grad_scale),
            S(decoupled ? 0.0 : weight_decay),
            S(decoupled ? 1.0 - lr * weight_decay : 1.0),
            S(beta1),
            S(1.0 - beta1),
            S(beta2),
            S(1.0 - beta2),
            S(lr / (1.0 - power(beta1, step))),
            S(1.0 / root(1.0 - power(beta2, step))),
            S(eps)};
}

template <class S>
struct LionScalars {
    S inv_scale, shrink, lr, beta1, gain1, beta2, gain2;

    CURVK_HD S move(S momentum, S grad) const {
        const S mixed = beta1 * momentum + gain1 * grad;
        return mixed > S(0) ? lr : mixed < S(0) ? -lr : mixed;  // lr sign(mixed), where a NaN stays
    }
};

template <class S>
CURVK_HD LionScalars<S> lion_scalars(CURVK_LION_SCALARS) {
    return {S((maximize ? -1.0 : 1.0) / grad_scale), S(1.0 - lr * weight_decay), S(lr), S(beta1),
            S(1.0 - beta1),                          S(beta2),                    S(1.0 - beta2)};
}

// The number of a step and the learning rate as they lie in memory. A number that is none gives the rate NaN, and that
// the parameters: a conversion out of range would give another integer on every machine.
struct At {
    int64_t step;
    double lr;
};

CURVK_HD inline At read_at(const double* at) {
    const bool counts = at[0] >= 1 && at[0] <= 9007199254740992.0;
    return {counts ? int64_t(at[0]) : 1, counts ? at[1] : double(NAN)};
}

// Population variance of the `length` newest entries. Deviations from the newest loss are small where the window is nearly
// constant, so the variance keeps its digits there.
CURVK_HD inline double newest_variance(const double* window, int64_t newest, int64_t length, int64_t patience, double loss) {
    double sum = 0, squares = 0;
    for (int64_t age = 0, i = newest; age < length; ++age, i = i ? i - 1 : patience - 1) sum += window[i] - loss;
    const double mean = sum / double(length);
    for (int64_t age = 0, i = newest; age < length; ++age, i = i ? i - 1 : patience - 1) {
        const double deviation = window[i] - loss - mean;
        squares += deviation * deviation;
    }
    return squares / double(length);
}

// curvk_loss_window_f64 for a *stored in range.
CURVK_HD inline void note_loss(double* window, int64_t* stored, double* out, int64_t patience, int64_t period, double loss) {
    out[0] = out[1] = out[2] = 0;
    if (loss != loss) return;
    const int64_t newest = *stored % patience;
    window[newest] = loss;
    *stored += 1;
    if (*stored < patience) return;
    bool highest = true;
    for (int64_t i = 0; i < patience; ++i) highest = highest && !(window[i] > loss);
    out[0] = highest;
    out[1] = newest_variance(window, newest, period < patience ? period : patience, patience, loss);
    out[2] = newest_variance(window, newest, patience, patience, loss);
}

// The sum of n losses from the one of age `age` on, in parts of 128 added in order; a part in the order of NumPy's pairwise
// sum, so that up to there the guard's means are the same bits as those that LossRule takes of the window.
CURVK_HD inline double sum_losses(const double* window, int64_t newest, int64_t patience, int64_t age, int64_t n) {
    const auto loss = [=](int64_t i) {
        const int64_t k = newest - age - i;
        return window[k < 0 ? k + patience : k];
    };
    double sum = 0;
    for (int64_t i = 0, end = 0; i < n;) {
        end = n - i < 128 ? n : i + 128;
        double part = 0;
        if (end - i >= 8) {
            double lane[8];
            for (int64_t k = 0; k < 8; ++k) lane[k] = loss(i + k);
            for (i += 8; i + 8 <= end; i += 8)
                for (int64_t k = 0; k < 8; ++k) lane[k] += loss(i + k);
            part = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
        }
        for (; i < end; ++i) part += loss(i);
        sum += part;
    }
    return sum;
}

struct LossFactors {
    double overshoot, stagnation, threshold, min_lr, max_lr;
};

// curvk_loss_rule_f64 for the learning rate *lr.
CURVK_HD inline void apply_loss_rule(double* window, int64_t* stored, double loss, double* lr, int64_t patience, int64_t period,
                                     const LossFactors& factors, bool guard) {
    if (*stored < 0 || *stored == INT64_MAX) return;  // a place in the window it cannot be
    double out[3];
    note_loss(window, stored, out, patience, period, loss);
    if (!(*lr >= 0 && *lr <= 1.7976931348623157e308)) return;
    bool stagnates = out[1] < factors.threshold * factors.threshold * out[2];
    if (stagnates && guard && period < patience) {
        const int64_t newest = (*stored - 1) % patience, older = period < patience - period ? period : patience - period;
        const double mean = sum_losses(window, newest, patience, 0, period) / double(period);
        stagnates = !(mean < sum_losses(window, newest, patience, period, older) / double(older));
    }
    double value = *lr;
    if (out[0] != 0) value *= factors.overshoot;
    if (stagnates) value *= factors.stagnation;
    *lr = value < factors.min_lr ? factors.min_lr : value > factors.max_lr ? factors.max_lr : value;
}

}  // namespace
}  // namespace CURVK_LEVEL
