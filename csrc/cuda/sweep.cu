#include "core/optim_scalars.h"
#include "cuda/codes.cuh"

namespace CURVK_LEVEL {
#include "curvk/sweep.h"
namespace {

// ---- maps -------------------------------------------------------------------------------------------------------------

__device__ constexpr DynamicMap<true> signed_map{};
__device__ constexpr DynamicMap<false> unsigned_map{};

template <bool is_signed>
__device__ __forceinline__ constexpr const DynamicMap<is_signed>& map() {
    if constexpr (is_signed) return signed_map;
    else return unsigned_map;
}

// A map's values in shared memory, where the lanes of a warp look up different ones at once. All threads come here.
template <class State, bool is_signed>
__device__ __forceinline__ const float* shared_values() {
    if constexpr (std::is_same<State, Mapped>::value) {
        __shared__ float values[block_threads];
        static_assert(block_threads == 256, "a thread fetches the value of a code");
        values[threadIdx.x] = map<is_signed>().value[threadIdx.x];
        __syncthreads();
        return values;
    }
    return nullptr;
}

template <bool is_signed>
__device__ __forceinline__ float raw(Mapped, uint8_t code, const float* values) {
    return values[code];
}
template <bool is_signed>
__device__ __forceinline__ uint32_t code(Mapped, float x, float by, uint32_t) {
    return Mapped::code_in(map<is_signed>(), x, by);
}

// ---- parameters -------------------------------------------------------------------------------------------------------

template <class Format, bool full, int packs, class T = typename Format::T, class S = typename Format::S>
__device__ __forceinline__ Pack<S, packs * width> load_parameters(const T* p, const T* low, const T* origin, int rounding,
                                                                  const Share<full, packs>& share) {
    constexpr int n = packs * width;
    // A choice of addresses instead of loads would make nvcc 13 store to p one by one.
    const auto high = origin ? share.read(origin) : share.read(p);
    Pack<S, n> x;
    if constexpr (sizeof(T) == 2)
        if (rounding >= kahan) {
            const auto rest = share.read(low);
            for (int k = 0; k < n; ++k)
                x[k] = rounding == kahan ? Format::load(high[k]) + Format::load(rest[k]) : joined(high[k], rest[k]);
            return x;
        }
    for (int k = 0; k < n; ++k) x[k] = Format::load(high[k]);
    return x;
}

template <class Format, bool full, int packs, int n, class T = typename Format::T, class S = typename Format::S>
__device__ __forceinline__ void store_parameters(T* p, T* low, int rounding, const Dither& dither,
                                                 const Share<full, packs>& share, const Pack<S, n>& x) {
    Pack<T, n> high;
    if constexpr (sizeof(T) == 2) {
        if (rounding == stochastic) {
            const auto random = dither.bits(0, share);
            for (int k = 0; k < n; ++k) high[k] = T(Format::code(x[k], random[k]));
            return share.write(p, high);
        }
        if (rounding >= kahan) {
            Pack<T, n> rest;
            for (int k = 0; k < n; ++k)
                if (rounding == kahan) compensate<Format>(x[k], high[k], rest[k]);
                else halve(x[k], high[k], rest[k]);
            share.write(low, rest);
            return share.write(p, high);
        }
    }
    for (int k = 0; k < n; ++k) high[k] = Format::store(x[k]);
    share.write(p, high);
}

// ---- steps ------------------------------------------------------------------------------------------------------------

// All arrays of a row in a unit. SGD's buffer is m.
template <class Format, class State>
struct Arrays {
    using T = typename Format::T;
    using S = typename Format::S;
    T *p, *g;
    States<State> m, v;
    S* max_v;
    T* low;
    S* ema;
    uint16_t* shadow;
    const T* origin;
};

// What any step does besides.
template <class S>
struct Extra {
    int rounding, zero_grad;
    S ema_decay, ema_gain;
    Stream stream;
};

template <class S>
struct Sgd {
    SgdScalars<S> s;
    bool first, nesterov;

    template <class Format, class State, bool full, int packs, int n>
    __device__ __forceinline__ void operator()(const Arrays<Format, State>& a, const Dither& dither,
                                               const Share<full, packs>& share, Pack<S, n>& param, Pack<S, n>& grad) const {
        if (a.m.x) {
            Pack<S, n> buf;
            Pack<uint32_t, n> random = {};
            if (!first) buf = load_states<true>(a.m, share);
            for (int k = 0; k < n; ++k) {
                buf[k] = s.mixed(first ? S(-0.0) : buf[k], grad[k]);  // first: the gradient to the bit
                grad[k] = s.direction(buf[k], grad[k], nesterov);
            }
            if (State::random) random = dither.bits(1, share);
            store_states<true>(a.m, share, buf, random);
        }
        for (int k = 0; k < n; ++k) param[k] = param[k] * s.shrink - s.lr * grad[k];
    }
};

template <class S>
struct Adam {
    AdamScalars<S> s;

    template <class Format, class State, bool full, int packs, int n>
    __device__ __forceinline__ void operator()(const Arrays<Format, State>& a, const Dither& dither,
                                               const Share<full, packs>& share, Pack<S, n>& param, Pack<S, n>& grad) const {
        auto m = load_states<true>(a.m, share), v = load_states<false>(a.v, share);
        Pack<S, n> divisor;
        Pack<uint32_t, n> random = {};
        if (!State::coded && a.max_v) {
            divisor = share.read(a.max_v);
            for (int k = 0; k < n; ++k) adam_moments<true>(grad[k], m[k], v[k], divisor[k], s);
            share.write(a.max_v, divisor);
        } else {
            for (int k = 0; k < n; ++k) divisor[k] = adam_moments<false>(grad[k], m[k], v[k], v[k], s);
        }
        for (int k = 0; k < n; ++k) param[k] = adam_param(param[k], m[k], divisor[k], s);
        if (State::random) random = dither.bits(1, share);
        store_states<true>(a.m, share, m, random);
        if (State::random) random = dither.bits(2, share);
        store_states<false>(a.v, share, v, random);
    }
};

enum SweepColumn : int {
    at_p, at_g, at_m, at_m_scale, at_v, at_v_scale, at_max_v, at_low, at_ema, at_shadow, at_origin, at_tensor, at_offset
};

template <class Format, class State, class Step, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    sweep(CURVK_GRID_CONSTANT(Rows) rows, const Step step, const Extra<S> e) {
    constexpr int packs = packs_of<State>, n = packs * width;
    using M = typename State::T;
    const Unit u = unit_of(rows);
    const int64_t place = u.begin / State::scaled;
    const float* const signed_values = shared_values<State, true>();
    const float* const unsigned_values = shared_values<State, false>();
    const Arrays<Format, State> a = {
        rows.address<T>(at_p, u.row, u.begin),
        rows.address<T>(at_g, u.row, u.begin),
        {rows.optional<M>(at_m, u.row, u.begin), rows.optional<float>(at_m_scale, u.row, place), signed_values},
        {rows.optional<M>(at_v, u.row, u.begin), rows.optional<float>(at_v_scale, u.row, place), unsigned_values},
        rows.optional<S>(at_max_v, u.row, u.begin),
        rows.optional<T>(at_low, u.row, u.begin),
        rows.optional<S>(at_ema, u.row, u.begin),
        rows.optional<uint16_t>(at_shadow, u.row, u.begin),
        rows.optional<const T>(at_origin, u.row, u.begin)};
    Dither dither = {};
    if (State::random || (sizeof(T) == 2 && e.rounding == stochastic)) {
        Stream stream = e.stream;
        stream.tensor = uint32_t(rows.at(at_tensor, u.row));
        const int64_t first = (int64_t(rows.at(at_offset, u.row)) + u.begin) / group;
        dither.own = words_of(stream, uint64_t(first) + threadIdx.x % warp);
    }
    const bool aligned = packs_aligned<width>(a.p, a.g, a.low, a.origin) && packs_aligned<width>(a.m.x, a.v.x) &&
                         packs_aligned<width>(a.max_v, a.ema) && packs_aligned<width>(a.shadow);
    for_steps<packs>(u.size, aligned, [&](const auto& share) {
        const auto given = share.read(a.g);
        auto param = load_parameters<Format>(a.p, a.low, a.origin, e.rounding, share);
        Pack<S, n> grad;
        for (int k = 0; k < n; ++k) {
            grad[k] = Format::load(given[k]) * step.s.inv_scale;
            if (step.s.coupled_decay != 0) grad[k] = grad[k] + step.s.coupled_decay * param[k];
        }
        step(a, dither, share, param, grad);
        if (a.ema) {
            auto ema = share.read(a.ema);
            for (int k = 0; k < n; ++k) ema[k] = e.ema_decay * ema[k] + e.ema_gain * param[k];
            share.write(a.ema, ema);
        }
        if (a.shadow) {
            Pack<uint16_t, n> shadow;
            for (int k = 0; k < n; ++k) shadow[k] = BF16::store(float(param[k]));
            share.write(a.shadow, shadow);
        }
        store_parameters<Format>(a.p, a.low, e.rounding, dither, share, param);
        if (e.zero_grad) share.write(a.g, Pack<T, n>{});
    });
}

// ---- lists ------------------------------------------------------------------------------------------------------------

#define TABLES(Format)                                                                                   \
    CURVK_SWEEP_TABLES(typename Format::T, typename Format::S), CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count
#define COMMON low, ema, shadow, origin, tensor, offset, sizes, count
#define EXTRAS rounding, ema_decay, zero_grad, draw, seed

template <class State>
using StateTable = typename State::T* const*;
using Scales = float* const*;
template <class Format>
using Params = typename Format::T* const*;

template <class Format, class State, class Step>
int32_t sweep_list(const char* name, const Step& step, StateTable<State> m, Scales m_scale, StateTable<State> v,
                   Scales v_scale, typename Format::S* const* max_v, Params<Format> p, Params<Format> g, TABLES(Format),
                   CURVK_SWEEP_SCALARS, void* stream) {
    using S = typename Format::S;
    const Extra<S> e = {int(rounding), int(zero_grad), S(ema_decay), S(1.0 - ema_decay), {uint64_t(seed), 0, uint32_t(draw)}};
    return for_rows(sizes, count, sweep_chunk,
                    {p, g, m, m_scale, v, v_scale, max_v, low, ema, shadow, origin, tensor, offset},
                    [&](const Rows& rows, int64_t chunks, int64_t) {
                        return launch(name, sweep<Format, State, Step>, chunks, block_threads, stream, rows, step, e);
                    });
}

// `place` is that of `rounding` among the arguments of the caller, for the status.
template <class State, class Format>
int32_t sgd_list(const char* name, int32_t place, StateTable<State> m, Scales m_scale, Params<Format> p, Params<Format> g,
                 TABLES(Format), CURVK_SGD_SWEEP_SCALARS, void* stream) {
    using S = typename Format::S;
    if (!can_round<Format>(rounding, low)) return place;
    const Sgd<S> step = {
        sgd_scalars<S>(lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale), first != 0,
        nesterov != 0};
    return sweep_list<Format, State>(name, step, m, m_scale, nullptr, nullptr, nullptr, p, g, COMMON, EXTRAS, stream);
}

template <class State, class Format>
int32_t adam_list(const char* name, int32_t place, StateTable<State> m, Scales m_scale, StateTable<State> v, Scales v_scale,
                  typename Format::S* const* max_v, Params<Format> p, Params<Format> g, TABLES(Format),
                  CURVK_ADAM_SWEEP_SCALARS, void* stream) {
    using S = typename Format::S;
    if (!can_round<Format>(rounding, low)) return place;
    const Adam<S> adam = {adam_scalars<S>(step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale)};
    return sweep_list<Format, State>(name, adam, m, m_scale, v, v_scale, max_v, p, g, COMMON, EXTRAS, stream);
}

// ---- arrays to codes and back -----------------------------------------------------------------------------------------

enum CodesColumn : int { at_x, at_codes, at_scale };

template <class State, bool is_signed>
__global__ void __launch_bounds__(block_threads) quantize(CURVK_GRID_CONSTANT(Rows) rows) {
    constexpr int packs = packs_of<State>, n = packs * width;
    const Unit u = unit_of(rows);
    const float* const x = rows.address<const float>(at_x, u.row, u.begin);
    const States<State> to = {rows.address<uint8_t>(at_codes, u.row, u.begin),
                              rows.address<float>(at_scale, u.row, u.begin / State::scaled), nullptr};
    for_steps<packs>(u.size, packs_aligned<width>(x) && packs_aligned<width>(to.x), [&](const auto& share) {
        auto values = share.read(x);
        Pack<uint32_t, n> random;
        for (int k = 0; k < n; ++k) {
            if (!is_signed) values[k] = magnitude(values[k]);
            random[k] = to_nearest_bits;
        }
        store_states<is_signed>(to, share, values, random);
    });
}

template <class State, bool is_signed>
__global__ void __launch_bounds__(block_threads) dequantize(CURVK_GRID_CONSTANT(Rows) rows) {
    constexpr int packs = packs_of<State>;
    const Unit u = unit_of(rows);
    float* const x = rows.address<float>(at_x, u.row, u.begin);
    const States<State> from = {rows.address<uint8_t>(at_codes, u.row, u.begin),
                                rows.address<float>(at_scale, u.row, u.begin / State::scaled),
                                shared_values<State, is_signed>()};
    for_steps<packs>(u.size, packs_aligned<width>(x) && packs_aligned<width>(from.x), [&](const auto& share) {
        share.write(x, load_states<is_signed>(from, share));
    });
}

template <class Kernel>
int32_t codes_list(const char* name, Kernel* kernel, Column x, Column codes, Column scale, const int64_t* sizes, int64_t count,
                   void* stream) {
    return for_rows(sizes, count, sweep_chunk, {x, codes, scale}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch(name, kernel, chunks, block_threads, stream, rows);
    });
}

}  // namespace

#define SGD COMMON, lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale, EXTRAS, stream
#define ADAM COMMON, step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale, EXTRAS, stream

#define SWEEP(FMT, T, S, Format)                                                                                      \
    int32_t curvk_sgd_sweep_list_##FMT(CURVK_SGD_SWEEP_LIST(T, S), void* stream) {                                    \
        return sgd_list<Whole<S>, Format>("sgd_sweep", 21, buf, nullptr, p, g, SGD);                                  \
    }                                                                                                                 \
    int32_t curvk_adam_sweep_list_##FMT(CURVK_ADAM_SWEEP_LIST(T, S), void* stream) {                                  \
        return adam_list<Whole<S>, Format>("adam_sweep", 23, m, nullptr, v, nullptr, max_v, p, g, ADAM);              \
    }
#define SWEEP_SHORT(FMT, T, S, Format)                                                                                \
    SWEEP(FMT, T, S, Format)                                                                                          \
    int32_t curvk_sgd_sweep16_list_##FMT(CURVK_SGD_SWEEP16_LIST(T, S), void* stream) {                                \
        return sgd_list<Short, Format>("sgd_sweep16", 21, buf, nullptr, p, g, SGD);                                   \
    }                                                                                                                 \
    int32_t curvk_sgd_sweep8_list_##FMT(CURVK_SGD_SWEEP8_LIST(T, S), void* stream) {                                  \
        return sgd_list<Coded, Format>("sgd_sweep8", 22, buf, buf_scale, p, g, SGD);                                  \
    }                                                                                                                 \
    int32_t curvk_sgd_sweep8b_list_##FMT(CURVK_SGD_SWEEP8B_LIST(T, S), void* stream) {                                \
        return sgd_list<Mapped, Format>("sgd_sweep8b", 22, buf, buf_scale, p, g, SGD);                                \
    }                                                                                                                 \
    int32_t curvk_adam_sweep16_list_##FMT(CURVK_ADAM_SWEEP16_LIST(T, S), void* stream) {                              \
        return adam_list<Short, Format>("adam_sweep16", 22, m, nullptr, v, nullptr, nullptr, p, g, ADAM);             \
    }                                                                                                                 \
    int32_t curvk_adam_sweep8_list_##FMT(CURVK_ADAM_SWEEP8_LIST(T, S), void* stream) {                                \
        return adam_list<Coded, Format>("adam_sweep8", 24, m, m_scale, v, v_scale, nullptr, p, g, ADAM);              \
    }                                                                                                                 \
    int32_t curvk_adam_sweep8b_list_##FMT(CURVK_ADAM_SWEEP8B_LIST(T, S), void* stream) {                              \
        return adam_list<Mapped, Format>("adam_sweep8b", 24, m, m_scale, v, v_scale, nullptr, p, g, ADAM);            \
    }
SWEEP(f64, double, double, F64)
SWEEP_SHORT(f32, float, float, F32)
SWEEP_SHORT(bf16, uint16_t, float, BF16)
SWEEP_SHORT(f16, uint16_t, float, F16)

#define CODES(KIND, State, GROUP)                                                                                     \
    int32_t curvk_quantize##KIND##_list_f32(CURVK_QUANTIZE_LIST(GROUP), void* stream) {                               \
        const auto kernel = is_signed ? quantize<State, true> : quantize<State, false>;                               \
        return codes_list("quantize" #KIND, kernel, x, codes, scale, sizes, count, stream);                           \
    }                                                                                                                 \
    int32_t curvk_dequantize##KIND##_list_f32(CURVK_DEQUANTIZE_LIST(GROUP), void* stream) {                           \
        const auto kernel = is_signed ? dequantize<State, true> : dequantize<State, false>;                           \
        return codes_list("dequantize" #KIND, kernel, x, codes, scale, sizes, count, stream);                         \
    }
CODES(8, Coded, 32)
CODES(8b, Mapped, 256)

}  // namespace CURVK_LEVEL
