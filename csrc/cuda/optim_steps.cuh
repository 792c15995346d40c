// The steps of SGD and Adam over a list of arrays. A step's scalars come with the launch (`given`) or, where their numbers
// are known on the device alone, lie `there` in its memory: a choice that is the same for all threads.
#pragma once

#include "core/optim_scalars.h"
#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
namespace {

// ---- SGD --------------------------------------------------------------------------------------------------------------

enum class Momentum { none, heavy_ball, nesterov };
enum SgdColumn : int { sgd_p, sgd_g, sgd_buf, sgd_origin };

template <class Format, Momentum mode, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    sgd_step(CURVK_GRID_CONSTANT(Rows) rows, const SgdScalars<S> given, const SgdScalars<S>* there, bool first) {
    const SgdScalars<S> s = there ? *there : given;
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    T* const p = rows.address<T>(sgd_p, part.row, part.begin);
    const T* const g = rows.address<const T>(sgd_g, part.row, part.begin);
    S* const buf = rows.optional<S>(sgd_buf, part.row, part.begin);
    const T* const origin = rows.optional<const T>(sgd_origin, part.row, part.begin);
    for_packs<4>(part.size, packs_aligned<4>(p, g, buf, origin), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        auto stored = load<V>(origin ? origin : p, i);
        const auto grads = load<V>(g, i);
        Pack<S, V> momenta;
        if (mode != Momentum::none && !first) momenta = load<V>(buf, i);
        for (int k = 0; k < V; ++k) {
            const S param = Format::load(stored[k]);
            S grad = Format::load(grads[k]) * s.inv_scale;
            if (s.coupled_decay != 0) grad = grad + s.coupled_decay * param;
            if (mode != Momentum::none) {
                const S mixed = s.mixed(first ? S(-0.0) : momenta[k], grad);  // first: the gradient to the bit
                momenta[k] = mixed;
                grad = s.direction(mixed, grad, mode == Momentum::nesterov);
            }
            stored[k] = Format::store(param * s.shrink - s.lr * grad);
        }
        store<V>(p, i, stored);
        if (mode != Momentum::none) store<V>(buf, i, momenta);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sgd_rows(T* const* p, const T* const* g, S* const* buf, const T* const* origin, const int64_t* sizes, int64_t count,
                 bool nesterov, bool first, const SgdScalars<S>& given, const SgdScalars<typename Format::S>* there,
                 void* stream) {
    const auto kernel = !buf       ? sgd_step<Format, Momentum::none>
                        : nesterov ? sgd_step<Format, Momentum::nesterov>
                                   : sgd_step<Format, Momentum::heavy_ball>;
    return for_rows(sizes, count, chunk_elements, {p, g, buf, origin}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("sgd_step", kernel, chunks, block_threads, stream, rows, given, there, first);
    });
}

// ---- Adam -------------------------------------------------------------------------------------------------------------

enum AdamColumn : int { adam_p, adam_g, adam_m, adam_v, adam_max_v, adam_origin };

template <class Format, bool amsgrad, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    adam_step(CURVK_GRID_CONSTANT(Rows) rows, const AdamScalars<S> given, const AdamScalars<S>* there) {
    const AdamScalars<S> s = there ? *there : given;
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    T* const p = rows.address<T>(adam_p, part.row, part.begin);
    const T* const g = rows.address<const T>(adam_g, part.row, part.begin);
    S* const m = rows.address<S>(adam_m, part.row, part.begin);
    S* const v = rows.address<S>(adam_v, part.row, part.begin);
    S* const max_v = rows.optional<S>(adam_max_v, part.row, part.begin);
    const T* const origin = rows.optional<const T>(adam_origin, part.row, part.begin);
    for_packs<4>(part.size, packs_aligned<4>(p, g, m, v, max_v, origin), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        auto stored = load<V>(origin ? origin : p, i);
        const auto grads = load<V>(g, i);
        auto firsts = load<V>(m, i), seconds = load<V>(v, i);
        Pack<S, V> tops;
        if (amsgrad) tops = load<V>(max_v, i);
        for (int k = 0; k < V; ++k) {
            const S param = Format::load(stored[k]);
            S grad = Format::load(grads[k]) * s.inv_scale;
            if (s.coupled_decay != 0) grad = grad + s.coupled_decay * param;
            const S divisor = adam_moments<amsgrad>(grad, firsts[k], seconds[k], tops[k], s);
            stored[k] = Format::store(adam_param(param, firsts[k], divisor, s));
        }
        store<V>(p, i, stored);
        store<V>(m, i, firsts);
        store<V>(v, i, seconds);
        if (amsgrad) store<V>(max_v, i, tops);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t adam_rows(T* const* p, const T* const* g, S* const* m, S* const* v, S* const* max_v, const T* const* origin,
                  const int64_t* sizes, int64_t count, const AdamScalars<S>& given,
                  const AdamScalars<typename Format::S>* there, void* stream) {
    const auto kernel = max_v ? adam_step<Format, true> : adam_step<Format, false>;
    return for_rows(sizes, count, chunk_elements, {p, g, m, v, max_v, origin}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("adam_step", kernel, chunks, block_threads, stream, rows, given, there);
    });
}

}  // namespace
}  // namespace CURVK_LEVEL
