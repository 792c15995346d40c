#include "cuda/optim_steps.cuh"

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

// ---- sum of squares ---------------------------------------------------------------------------------------------------

// partials[chunk] <- the chunk's sum, flags[chunk] <- 1 if an element of it is not finite. 16 threads a chunk.
template <class Format, class T = typename Format::T>
__global__ void __launch_bounds__(block_threads)
    sum_squares(CURVK_GRID_CONSTANT(Rows) rows, double scale, int64_t chunks, double* partials, double* flags) {
    constexpr bool wide = sizeof(T) == 8;  // the square of a shorter float cannot overflow a double
    const int64_t chunk = blockIdx.x * sums_per_block + threadIdx.x / lanes;
    const Part part = chunk < chunks ? part_of(rows, chunk, sum_chunk) : Part{0, 0, 0};
    const T* const x = rows.address<const T>(0, part.row, part.begin);
    const int64_t lane = threadIdx.x % lanes;
    double sum = 0;
    bool finite = true;
    for (int64_t i = lane; i < part.size; i += lanes) {
        const double element = double(Format::load(x[i])), value = wide ? element * scale : element;
        finite = finite && is_finite(element);
        sum += value * value;
    }
    sum = fold_threads(sum);
    const double bad = fold_threads(finite ? 0.0 : 1.0);
    if (lane || chunk >= chunks) return;
    partials[chunk] = sum;
    flags[chunk] = bad;
}

__global__ void __launch_bounds__(block_threads)
    finish_squares(const double* partials, const double* flags, int64_t chunks, double factor, double* out) {
    const bool flagged = blockIdx.x == 1;
    const double sum = sum_in_order(flagged ? flags : partials, chunks, 1);
    if (threadIdx.x == 0) out[blockIdx.x] = !flagged ? sum * factor : sum > 0 ? 1.0 : 0.0;
}

template <class Format, class T = typename Format::T>
int32_t sum_squares_list(CURVK_NORM_LIST(T), void* stream) {
    const int64_t chunks = count_chunks(sizes, count);
    const Scratch<double> partials("sum_squares", 2 * chunks, stream);
    if (partials.status) return partials.status;
    double* const flags = partials.data + chunks;
    const auto one = [&](const Rows& rows, int64_t n, int64_t before) {
        const int64_t blocks = (n + sums_per_block - 1) / sums_per_block;
        return launch("sum_squares", sum_squares<Format>, blocks, block_threads, stream, rows, scale, n, partials.data + before,
                      flags + before);
    };
    if (const int32_t status = for_rows(sizes, count, sum_chunk, {x}, one)) return status;
    const double factor = sizeof(T) == 8 ? 1.0 : scale * scale;
    return launch("sum_squares", finish_squares, 2, block_threads, stream, partials.data, flags, chunks, factor, out);
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
