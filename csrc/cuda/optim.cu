#include "cuda/optim_steps.cuh"
#include "cuda/sums.cuh"

namespace CURVK_LEVEL {
namespace {

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sgd_list(CURVK_SGD_LIST(T, S), void* stream) {
    const auto s = sgd_scalars<S>(lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale);
    return sgd_rows<Format>(p, g, buf, origin, sizes, count, nesterov != 0, first != 0, s, nullptr, stream);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t adam_list(CURVK_ADAM_LIST(T, S), void* stream) {
    const auto s = adam_scalars<S>(step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale);
    return adam_rows<Format>(p, g, m, v, max_v, origin, sizes, count, s, nullptr, stream);
}

// ---- Lion -------------------------------------------------------------------------------------------------------------

enum LionColumn : int { lion_p, lion_g, lion_m, lion_origin };

template <class Format, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads) lion_step(CURVK_GRID_CONSTANT(Rows) rows, const LionScalars<S> s) {
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    T* const p = rows.address<T>(lion_p, part.row, part.begin);
    const T* const g = rows.address<const T>(lion_g, part.row, part.begin);
    S* const m = rows.address<S>(lion_m, part.row, part.begin);
    const T* const origin = rows.optional<const T>(lion_origin, part.row, part.begin);
    for_packs<4>(part.size, packs_aligned<4>(p, g, m, origin), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        auto stored = load<V>(origin ? origin : p, i);
        const auto grads = load<V>(g, i);
        auto momenta = load<V>(m, i);
        for (int k = 0; k < V; ++k) {
            const S grad = Format::load(grads[k]) * s.inv_scale;
            stored[k] = Format::store(Format::load(stored[k]) * s.shrink - s.move(momenta[k], grad));
            momenta[k] = s.beta2 * momenta[k] + s.gain2 * grad;
        }
        store<V>(p, i, stored);
        store<V>(m, i, momenta);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t lion_list(CURVK_LION_LIST(T, S), void* stream) {
    const auto s = lion_scalars<S>(lr, beta1, beta2, weight_decay, maximize, grad_scale);
    return for_rows(sizes, count, chunk_elements, {p, g, m, origin}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("lion_step", lion_step<Format>, chunks, block_threads, stream, rows, s);
    });
}

// ---- sum of squares ---------------------------------------------------------------------------------------------------

template <class Format, class T = typename Format::T>
__global__ void __launch_bounds__(block_threads)
    sum_squares(CURVK_GRID_CONSTANT(Rows) rows, double* partials, double scale) {
    constexpr bool wide = sizeof(T) == 8;  // the square of a shorter float cannot overflow a double
    const Part part = part_of(rows, blockIdx.x, sum_chunk);
    const T* const x = rows.address<const T>(0, part.row, part.begin);
    sum_flagged(part, partials + 2 * blockIdx.x, [&](int i, bool& finite) {
        const double element = double(Format::load(x[i])), value = wide ? element * scale : element;
        finite = is_finite(element);
        return value * value;
    });
}

template <class Format, class T = typename Format::T>
int32_t sum_squares_list(CURVK_NORM_LIST(T), void* stream) {
    const double after = sizeof(T) == 8 ? 1.0 : scale;
    return sum_list<2>("sum_squares", sum_squares<Format>, add_flagged, {x}, sizes, count, after, out, stream, scale);
}

// ---- the loss window --------------------------------------------------------------------------------------------------

__global__ void loss_window(double* window, int64_t* stored, double* out, int64_t patience, int64_t period, double loss) {
    note_loss(window, stored, out, patience, period, loss);
}

}  // namespace

#define OPTIM(FMT, T, S, Format)                                                                                              \
    int32_t curvk_sgd_step_list_##FMT(CURVK_SGD_LIST(T, S), void* stream) {                                                   \
        return sgd_list<Format>(p, g, buf, origin, sizes, count, lr, momentum, dampening, weight_decay, nesterov, decoupled,  \
                                maximize, first, grad_scale, stream);                                                         \
    }                                                                                                                         \
    int32_t curvk_adam_step_list_##FMT(CURVK_ADAM_LIST(T, S), void* stream) {                                                 \
        return adam_list<Format>(p, g, m, v, max_v, origin, sizes, count, step, lr, beta1, beta2, eps, weight_decay,          \
                                 decoupled, maximize, grad_scale, stream);                                                    \
    }                                                                                                                         \
    int32_t curvk_lion_step_list_##FMT(CURVK_LION_LIST(T, S), void* stream) {                                                 \
        return lion_list<Format>(p, g, m, origin, sizes, count, lr, beta1, beta2, weight_decay, maximize, grad_scale, stream); \
    }                                                                                                                         \
    int32_t curvk_sum_squares_list_##FMT(CURVK_NORM_LIST(T), void* stream) {                                                  \
        return sum_squares_list<Format>(x, sizes, count, scale, out, stream);                                                 \
    }
OPTIM(f32, float, float, F32)
OPTIM(f64, double, double, F64)
OPTIM(bf16, uint16_t, float, BF16)
OPTIM(f16, uint16_t, float, F16)

int32_t curvk_loss_window_f64(double* window, int64_t* stored, double* out, int64_t patience, int64_t period, double loss,
                              void* stream) {
    return launch("loss_window", loss_window, 1, 1, stream, window, stored, out, patience, period, loss);
}

}  // namespace CURVK_LEVEL
