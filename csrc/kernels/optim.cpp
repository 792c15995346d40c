#include "core/optim_scalars.h"

namespace CURVK_LEVEL {
namespace {

// The parameters that a step starts from, put where the loop looks for them: a block that stays in L1.
template <class T>
inline void fetch(T* p, const T* origin, int64_t n) {
    prefetch_ahead(origin);
    memcpy(p, origin, size_t(n) * sizeof(T));
}

// ---- SGD --------------------------------------------------------------------------------------------------------------

enum class Momentum { none, heavy_ball, nesterov };

template <class Format, bool coupled, Momentum mode, class T, class S>
inline void sgd(T* __restrict p, const T* __restrict g, S* __restrict buf, int64_t n, const SgdScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S param = Format::load(p[i]);
        S grad = Format::load(g[i]) * s.inv_scale;
        if (coupled) grad = grad + s.coupled_decay * param;
        if (mode != Momentum::none) {
            const S mixed = s.mixed(buf[i], grad);
            buf[i] = mixed;
            grad = s.direction(mixed, grad, mode == Momentum::nesterov);
        }
        p[i] = Format::store(param * s.shrink - s.lr * grad);
    }
}

template <class Format, bool coupled, Momentum mode, class T = typename Format::T, class S = typename Format::S>
void sgd_blocks(T* p, const T* g, S* buf, const T* origin, int64_t n, const SgdScalars<S>& s, bool first) {
    for_blocks(n, [&](int64_t i, int64_t length) CURVK_INLINE {
        prefetch_ahead(p + i, g + i);
        if (origin) fetch(p + i, origin + i, length);
        if (mode == Momentum::none) return sgd<Format, coupled, mode>(p + i, g + i, static_cast<S*>(nullptr), length, s);
        prefetch_ahead(buf + i);
        // On the first step the buffer becomes the gradient: momentum (-0) + 1 g is g to the bit, and the block is in L1.
        for (int64_t k = 0; first && k < length; ++k) buf[i + k] = S(-0.0);
        sgd<Format, coupled, mode>(p + i, g + i, buf + i, length, s);
    });
}

template <class Format, bool coupled>
constexpr auto sgd_loop(Momentum mode) {
    return mode == Momentum::none         ? sgd_blocks<Format, coupled, Momentum::none>
           : mode == Momentum::heavy_ball ? sgd_blocks<Format, coupled, Momentum::heavy_ball>
                                          : sgd_blocks<Format, coupled, Momentum::nesterov>;
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sgd_list(CURVK_SGD_LIST(T, S)) {
    const auto s = sgd_scalars<S>(lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale);
    const bool buffered = buf != nullptr;
    const Momentum mode = !buffered ? Momentum::none : nesterov ? Momentum::nesterov : Momentum::heavy_ball;
    const auto loop = s.coupled_decay != 0 ? sgd_loop<Format, true>(mode) : sgd_loop<Format, false>(mode);
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t i, int64_t n) {
        loop(p[row] + i, g[row] + i, buffered ? buf[row] + i : nullptr, origin ? origin[row] + i : nullptr, n, s, first != 0);
    });
    return 0;
}

// ---- Adam -------------------------------------------------------------------------------------------------------------

template <class Format, bool coupled, bool amsgrad, class T, class S>
inline void adam(T* __restrict p, const T* __restrict g, S* __restrict m, S* __restrict v, S* __restrict max_v, int64_t n,
          const AdamScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S param = Format::load(p[i]);
        S grad = Format::load(g[i]) * s.inv_scale;
        if (coupled) grad = grad + s.coupled_decay * param;
        S first = m[i], second = v[i], top = amsgrad ? max_v[i] : S(0);
        const S divisor = adam_moments<amsgrad>(grad, first, second, top, s);
        m[i] = first;
        v[i] = second;
        if (amsgrad) max_v[i] = top;
        p[i] = Format::store(adam_param(param, first, divisor, s));
    }
}

template <class Format, bool coupled, bool amsgrad, class T = typename Format::T, class S = typename Format::S>
void adam_blocks(T* p, const T* g, S* m, S* v, S* max_v, const T* origin, int64_t n, const AdamScalars<S>& s) {
    for_blocks(n, [&](int64_t i, int64_t length) CURVK_INLINE {
        prefetch_ahead(p + i, g + i, m + i, v + i);
        if (origin) fetch(p + i, origin + i, length);
        if (amsgrad) prefetch_ahead(max_v + i);
        adam<Format, coupled, amsgrad>(p + i, g + i, m + i, v + i, amsgrad ? max_v + i : nullptr, length, s);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t adam_list(CURVK_ADAM_LIST(T, S)) {
    const auto s = adam_scalars<S>(step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale);
    const bool amsgrad = max_v != nullptr;
    const auto loop = s.coupled_decay != 0 ? (amsgrad ? adam_blocks<Format, true, true> : adam_blocks<Format, true, false>)
                                           : (amsgrad ? adam_blocks<Format, false, true> : adam_blocks<Format, false, false>);
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t i, int64_t n) {
        loop(p[row] + i, g[row] + i, m[row] + i, v[row] + i, amsgrad ? max_v[row] + i : nullptr,
             origin ? origin[row] + i : nullptr, n, s);
    });
    return 0;
}

// ---- Lion -------------------------------------------------------------------------------------------------------------

template <class Format, class T, class S>
inline void lion(T* __restrict p, const T* __restrict g, S* __restrict m, int64_t n, const LionScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S grad = Format::load(g[i]) * s.inv_scale;
        p[i] = Format::store(Format::load(p[i]) * s.shrink - s.move(m[i], grad));
        m[i] = s.beta2 * m[i] + s.gain2 * grad;
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t lion_list(CURVK_LION_LIST(T, S)) {
    const auto s = lion_scalars<S>(lr, beta1, beta2, weight_decay, maximize, grad_scale);
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t begin, int64_t n) {
        for_blocks(n, [&](int64_t at, int64_t length) CURVK_INLINE {
            const int64_t i = begin + at;
            prefetch_ahead(p[row] + i, g[row] + i, m[row] + i);
            if (origin) fetch(p[row] + i, origin[row] + i, length);
            lion<Format>(p[row] + i, g[row] + i, m[row] + i, length, s);
        });
    });
    return 0;
}

// ---- sum of squares ---------------------------------------------------------------------------------------------------

struct Partial {
    double sum;
    bool finite;
};

template <class Format, class T = typename Format::T>
Partial sum_squares_chunk(const T* __restrict x, int64_t n, double scale) {
    constexpr bool wide = sizeof(T) == 8;  // the square of a shorter float cannot overflow a double
    double lane[lanes] = {};               // a local array of one loop: two arrays, or a struct's, stay in memory
    const int64_t whole = n - n % lanes;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int64_t k = 0; k < lanes; ++k) {
            const double value = wide ? double(Format::load(x[i + k])) * scale : double(Format::load(x[i + k]));
            lane[k] += value * value;
        }
    for (int64_t k = 0; whole + k < n; ++k) {
        const double value = wide ? double(Format::load(x[whole + k])) * scale : double(Format::load(x[whole + k]));
        lane[k] += value * value;
    }
    const double sum = fold(lane);
    bool finite = is_finite(sum);
    if (wide && !finite) {  // a NaN or an infinity, or finite elements whose squares overflow
        finite = true;
        for (int64_t i = 0; i < n; ++i) finite = finite && is_finite(double(Format::load(x[i])));
    }
    return {sum, finite};
}

template <class Format, class T = typename Format::T>
int32_t sum_squares_list(CURVK_NORM_LIST(T)) {
    const int64_t chunks = count_chunks(sizes, count);
    Partial few[64];
    Partial* partials = chunks <= 64 ? few : static_cast<Partial*>(malloc(size_t(chunks) * sizeof(Partial)));
    if (!partials) return CURVK_NO_MEMORY;
    for_chunks(sizes, count, 2, [=](int64_t chunk, int64_t row, int64_t at, int64_t n) {
        partials[chunk] = sum_squares_chunk<Format>(x[row] + at, n, scale);
    });
    double sum = 0;
    bool finite = true;
    for (int64_t c = 0; c < chunks; ++c) {
        sum += partials[c].sum;
        finite = finite && partials[c].finite;
    }
    if (partials != few) free(partials);
    out[0] = sizeof(T) == 8 ? sum : sum * scale * scale;
    out[1] = finite ? 0.0 : 1.0;
    return 0;
}

}  // namespace

#define OPTIM(FMT, T, S, Format)                                                                                     \
    int32_t curvk_sgd_step_list_##FMT(CURVK_SGD_LIST(T, S)) {                                                        \
        return sgd_list<Format>(p, g, buf, origin, sizes, count, lr, momentum, dampening, weight_decay, nesterov, decoupled, \
                                maximize, first, grad_scale);                                                        \
    }                                                                                                                \
    int32_t curvk_adam_step_list_##FMT(CURVK_ADAM_LIST(T, S)) {                                                      \
        return adam_list<Format>(p, g, m, v, max_v, origin, sizes, count, step, lr, beta1, beta2, eps, weight_decay,         \
                                 decoupled, maximize, grad_scale);                                                   \
    }                                                                                                                \
    int32_t curvk_lion_step_list_##FMT(CURVK_LION_LIST(T, S)) {                                                      \
        return lion_list<Format>(p, g, m, origin, sizes, count, lr, beta1, beta2, weight_decay, maximize, grad_scale);       \
    }                                                                                                                \
    int32_t curvk_sum_squares_list_##FMT(CURVK_NORM_LIST(T)) {                                                       \
        return sum_squares_list<Format>(x, sizes, count, scale, out);                                                \
    }
OPTIM(f32, float, float, F32)
OPTIM(f64, double, double, F64)
OPTIM(bf16, uint16_t, float, BF16)
OPTIM(f16, uint16_t, float, F16)

// ---- the loss window --------------------------------------------------------------------------------------------------

int32_t curvk_loss_window_f64(double* window, int64_t* stored, double* out, int64_t patience, int64_t period, double loss) {
    if (*stored < 0 || *stored == INT64_MAX) return 2;
    note_loss(window, stored, out, patience, period, loss);
    return 0;
}

}  // namespace CURVK_LEVEL
