#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/optim.h"
namespace {

// ---- SGD --------------------------------------------------------------------------------------------------------------

template <class S>
struct SgdScalars {
    S inv_scale, coupled_decay, shrink, momentum, damped, lr;
    bool nesterov, first;
};

template <class S>
SgdScalars<S> sgd_scalars(CURVK_SGD_SCALARS) {
    return {S((maximize ? -1.0 : 1.0) / grad_scale),
            S(decoupled ? 0.0 : weight_decay),
            S(decoupled ? 1.0 - lr * weight_decay : 1.0),
            S(momentum),
            S(1.0 - dampening),
            S(lr),
            nesterov != 0,
            first != 0};
}

template <class Format, bool coupled, bool buffered, class T = typename Format::T, class S = typename Format::S>
void sgd(T* __restrict p, const T* __restrict g, S* __restrict buf, int64_t n, const SgdScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S param = Format::load(p[i]);
        S grad = Format::load(g[i]) * s.inv_scale;
        if (coupled) grad = grad + s.coupled_decay * param;
        if (buffered) {
            const S mixed = s.first ? grad : s.momentum * buf[i] + s.damped * grad;
            buf[i] = mixed;
            grad = s.nesterov ? grad + s.momentum * mixed : mixed;
        }
        p[i] = Format::store(param * s.shrink - s.lr * grad);
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sgd_list(CURVK_SGD_LIST(T, S)) {
    const auto s = sgd_scalars<S>(lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale);
    const bool buffered = buf && count && buf[0];
    const auto loop = s.coupled_decay != 0 ? (buffered ? sgd<Format, true, true> : sgd<Format, true, false>)
                                           : (buffered ? sgd<Format, false, true> : sgd<Format, false, false>);
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t i, int64_t n) {
        loop(p[row] + i, g[row] + i, buffered ? buf[row] + i : nullptr, n, s);
    });
    return 0;
}

// ---- Adam -------------------------------------------------------------------------------------------------------------

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

template <class Format, bool coupled, bool amsgrad, class T = typename Format::T, class S = typename Format::S>
void adam(T* __restrict p, const T* __restrict g, S* __restrict m, S* __restrict v, S* __restrict max_v, int64_t n,
          const AdamScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S param = Format::load(p[i]);
        S grad = Format::load(g[i]) * s.inv_scale;
        if (coupled) grad = grad + s.coupled_decay * param;
        const S first = s.beta1 * m[i] + s.gain1 * grad;
        S second = s.beta2 * v[i] + s.gain2 * (grad * grad);
        m[i] = first;
        v[i] = second;
        if (amsgrad) {
            const S old = max_v[i];
            second = second > old || second != second ? second : old;  // a NaN on either side stays, as in torch.maximum
            max_v[i] = second;
        }
        // Format::S picks sqrtf for float: sqrt(double) would cost a conversion each way and other bits.
        const S root = sizeof(S) == 4 ? S(sqrtf(float(second))) : S(sqrt(double(second)));
        p[i] = Format::store(param * s.shrink - s.step_size * first / (root * s.inv_root2 + s.eps));
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t adam_list(CURVK_ADAM_LIST(T, S)) {
    const auto s = adam_scalars<S>(step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale);
    const bool amsgrad = max_v && count && max_v[0];
    const auto loop = s.coupled_decay != 0 ? (amsgrad ? adam<Format, true, true> : adam<Format, true, false>)
                                           : (amsgrad ? adam<Format, false, true> : adam<Format, false, false>);
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t i, int64_t n) {
        loop(p[row] + i, g[row] + i, m[row] + i, v[row] + i, amsgrad ? max_v[row] + i : nullptr, n, s);
    });
    return 0;
}

// ---- sum of squares ---------------------------------------------------------------------------------------------------

constexpr int64_t norm_chunk = 32768;

struct Partial {
    double sum, poison;  // poison is NaN if an element was not finite
};

template <class Format, class T = typename Format::T>
Partial sum_squares_chunk(const T* __restrict x, int64_t n, double scale) {
    Lanes sum, poison;
    const int64_t whole = n - n % lanes;
    for (int64_t i = 0; i < n; i += lanes) {
        T block[lanes] = {};  // the tail's missing lanes add zeros
        const T* from = x + i;
        if (i == whole) {
            for (int64_t k = 0; k < n - whole; ++k) block[k] = x[i + k];
            from = block;
        }
        for (int64_t k = 0; k < lanes; ++k) {
            double value = double(Format::load(from[k]));
            if (sizeof(T) == 8) {  // a square of a 32-bit or shorter float cannot overflow a double: sum tells enough
                poison.lane[k] += value * 0.0;
                value *= scale;
            }
            sum.lane[k] += value * value;
        }
    }
    return {sum.fold(), poison.fold()};
}

template <class Format, class T = typename Format::T>
int32_t sum_squares_list(CURVK_NORM_LIST(T)) {
    int64_t chunks = 0;
    for (int64_t row = 0; row < count; ++row) chunks += (sizes[row] + norm_chunk - 1) / norm_chunk;
    Partial few[64];
    Partial* partials = chunks <= 64 ? few : static_cast<Partial*>(malloc(size_t(chunks) * sizeof(Partial)));
    if (!partials) return CURVK_NO_MEMORY;
    for_ranges(chunks, 2, [=](int64_t begin, int64_t end) {
        int64_t first = 0;  // the row's first chunk
        for (int64_t row = 0; row < count && first < end; ++row) {
            const int64_t own = (sizes[row] + norm_chunk - 1) / norm_chunk;
            for (int64_t c = begin > first ? begin : first; c < end && c < first + own; ++c) {
                const int64_t at = (c - first) * norm_chunk, left = sizes[row] - at;
                partials[c] = sum_squares_chunk<Format>(x[row] + at, left < norm_chunk ? left : norm_chunk, scale);
            }
            first += own;
        }
    });
    double sum = 0, poison = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        sum += partials[c].sum;
        poison += partials[c].poison;
    }
    if (partials != few) free(partials);
    const bool finite = sizeof(T) == 8 ? poison == poison : sum - sum == 0;
    out[0] = sizeof(T) == 8 ? sum : sum * (scale * scale);
    out[1] = finite ? 0.0 : 1.0;
    return 0;
}

}  // namespace

#define OPTIM(FMT, T, S, Format)                                                                                     \
    int32_t curvk_sgd_step_list_##FMT(CURVK_SGD_LIST(T, S)) {                                                        \
        return sgd_list<Format>(p, g, buf, sizes, count, lr, momentum, dampening, weight_decay, nesterov, decoupled, \
                                maximize, first, grad_scale);                                                        \
    }                                                                                                                \
    int32_t curvk_adam_step_list_##FMT(CURVK_ADAM_LIST(T, S)) {                                                      \
        return adam_list<Format>(p, g, m, v, max_v, sizes, count, step, lr, beta1, beta2, eps, weight_decay,         \
                                 decoupled, maximize, grad_scale);                                                   \
    }                                                                                                                \
    int32_t curvk_sum_squares_list_##FMT(CURVK_NORM_LIST(T)) {                                                       \
        return sum_squares_list<Format>(x, sizes, count, scale, out);                                                \
    }
OPTIM(f32, float, float, F32)
OPTIM(f64, double, double, F64)
OPTIM(bf16, uint16_t, float, BF16)
OPTIM(f16, uint16_t, float, F16)

// ---- the loss window --------------------------------------------------------------------------------------------------

namespace {

// Population variance of the `length` newest entries. Deviations from the newest loss are small where the window is nearly
// constant, so the variance keeps its digits there.
double newest_variance(const double* window, int64_t newest, int64_t length, int64_t patience, double loss) {
    double sum = 0, squares = 0;
    for (int64_t age = 0, i = newest; age < length; ++age, i = i ? i - 1 : patience - 1) sum += window[i] - loss;
    const double mean = sum / double(length);
    for (int64_t age = 0, i = newest; age < length; ++age, i = i ? i - 1 : patience - 1) {
        const double deviation = window[i] - loss - mean;
        squares += deviation * deviation;
    }
    return squares / double(length);
}

}  // namespace

int32_t curvk_loss_window_f64(double* window, int64_t* stored, double* out, int64_t patience, int64_t period, double loss) {
    out[0] = out[1] = out[2] = 0;
    if (loss != loss) return 0;
    const int64_t newest = *stored % patience;
    window[newest] = loss;
    *stored += 1;
    if (*stored < patience) return 0;
    bool highest = true;
    for (int64_t i = 0; i < patience; ++i) highest = highest && !(window[i] > loss);
    out[0] = highest;
    out[1] = newest_variance(window, newest, period < patience ? period : patience, patience, loss);
    out[2] = newest_variance(window, newest, patience, patience, loss);
    return 0;
}

}  // namespace CURVK_LEVEL
