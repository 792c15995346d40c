#include "core/codes.h"
#include "core/optim_scalars.h"

namespace CURVK_LEVEL {
#include "curvk/sweep.h"
namespace {

// ---- what a step works on ---------------------------------------------------------------------------------------------

// All arrays of a row, from some element on. SGD's buffer is m.
template <class Format, class State>
struct Arrays {
    using T = typename Format::T;
    using S = typename Format::S;
    using M = typename State::T;
    T *p, *g;
    M* m;
    float* m_scale;
    M* v;
    float* v_scale;
    S* max_v;
    T* low;
    S* ema;
    uint16_t* shadow;
    const T* origin;

    Arrays at(int64_t i) const {
        const int64_t block = i / State::scaled;
        return {p + i,        g + i,      on(m, i),   on(m_scale, block), on(v, i),     on(v_scale, block),
                on(max_v, i), on(low, i), on(ema, i), on(shadow, i),      on(origin, i)};
    }

   private:
    template <class X>
    static X* on(X* x, int64_t i) {
        return x ? x + i : x;
    }
};

// Copies of a short last tile at full length. What lies behind the row's end is 0, which changes no scale.
template <class Format, class State>
class Padded {
   public:
    using A = Arrays<Format, State>;

    Padded(const A& a, int64_t n) : row_(a), n_(n), copy_(a) {
        each([](auto*& x, auto* copy, int64_t count, int64_t length, int zero) {
            if (!x) return;
            memcpy(copy, x, size_t(count) * sizeof *copy);
            for (int64_t k = count; k < length; ++k) copy[k] = zero;
            x = copy;
        });
        if (!row_.origin) return;
        memset(origin_, 0, sizeof origin_);
        memcpy(origin_, row_.origin, size_t(n) * sizeof *origin_);
        copy_.origin = origin_;
    }
    const A& arrays() const { return copy_; }
    void put_back() {
        copy_ = row_;
        each([](auto*& x, auto* copy, int64_t count, int64_t, int) {
            if (x) memcpy(x, copy, size_t(count) * sizeof *copy);
        });
    }

   private:
    template <class F>
    void each(F f) {
        const int64_t scales = (n_ + State::scaled - 1) / State::scaled;
        f(copy_.p, p_, n_, tile, 0), f(copy_.g, g_, n_, tile, 0), f(copy_.m, m_, n_, tile, State::zero);
        f(copy_.m_scale, m_scale_, scales, tile / State::scaled, 0), f(copy_.v, v_, n_, tile, 0);
        f(copy_.v_scale, v_scale_, scales, tile / State::scaled, 0), f(copy_.max_v, max_v_, n_, tile, 0);
        f(copy_.low, low_, n_, tile, 0), f(copy_.ema, ema_, n_, tile, 0), f(copy_.shadow, shadow_, n_, tile, 0);
    }
    A row_;
    int64_t n_;
    A copy_;
    typename A::T p_[tile], g_[tile], low_[tile], origin_[tile];
    typename A::M m_[tile], v_[tile];
    typename A::S max_v_[tile], ema_[tile];
    float m_scale_[tile / State::scaled], v_scale_[tile / State::scaled];
    uint16_t shadow_[tile];
};

// What any step does besides.
template <class S>
struct Extra {
    int64_t rounding, zero_grad;
    S ema_decay, ema_gain;
    Stream stream;
};

// Calls step(arrays, noise, the tile's first group) for the tiles of rows that `row_of` gives.
template <class State, class R, class S, class F>
int32_t for_tiles(const int64_t* sizes, int64_t count, const int64_t* tensor, const int64_t* offset, const Extra<S>& extra,
                  R row_of, F step) {
    const bool random = State::random || extra.rounding == stochastic;
    for_list<unit>(sizes, count, elementwise_grain / unit, [=](int64_t r, int64_t begin, int64_t size) {
        const auto row = row_of(r);
        Stream stream = extra.stream;
        stream.tensor = uint32_t(tensor[r]);
        Noise noise = {};
        for (int64_t i = begin; i < begin + size; i += tile) {
            if (random && i % unit == 0) noise.make(stream, (offset[r] + i) / unit);
            const int64_t first = i % unit / group, left = begin + size - i;
            const auto block = row.at(i);
            if (left >= tile) {
                step(block, noise, first);
            } else {
                Padded padded(block, left);
                step(padded.arrays(), noise, first);
                padded.put_back();
            }
        }
    });
    return 0;
}

template <class Format, class State, class S = typename Format::S>
inline void begin_tile(const Arrays<Format, State>& a, const Extra<S>& e, S inv_scale, S coupled_decay, S* __restrict param,
                       S* __restrict grad) {
    const auto* __restrict const g = a.g;
    for (int64_t i = 0; i < tile; i += block) {  // prefetches come a few at a time: a tile's would wait for each other
        prefetch_ahead(a.p + i, a.g + i);
        for (int64_t k = i; k < i + block; ++k) grad[k] = Format::load(g[k]) * inv_scale;
    }
    load_params<Format>(a.origin ? a.origin : a.p, a.low, e.rounding, param);
    if (coupled_decay != 0)
        for (int64_t k = 0; k < tile; ++k) grad[k] = grad[k] + coupled_decay * param[k];
}

template <class Format, class State, class S = typename Format::S>
inline void end_tile(const Arrays<Format, State>& a, const Extra<S>& e, const S* __restrict param, const Noise& noise,
                     int64_t first) {
    if (S* __restrict const ema = a.ema) {
        prefetch_span(ema, tile);
        for (int64_t k = 0; k < tile; ++k) ema[k] = e.ema_decay * ema[k] + e.ema_gain * param[k];
    }
    if (uint16_t* __restrict const shadow = a.shadow) {
        prefetch_span(shadow, tile);
        for (int64_t k = 0; k < tile; ++k) shadow[k] = BF16::store(float(param[k]));
    }
    store_params<Format>(param, a.p, a.low, e.rounding, noise.words[0] + first);
    if (e.zero_grad) memset(a.g, 0, tile * sizeof *a.g);
}

template <bool x>
struct Flag {
    static constexpr bool value = x;
};

// Calls f(group)(k, place in the group) for the elements of a tile: f looks up what a group's elements share.
template <class F>
inline void for_groups(F f) {
    for (int64_t j = 0; j < groups; ++j) {
        const auto each = f(j);
        for (int64_t l = 0; l < group; ++l) each(j * group + l, l);
    }
}

// ---- SGD --------------------------------------------------------------------------------------------------------------

// Between load and store of the buffer: from gradient to direction.
template <class S>
struct Momentum {
    SgdScalars<S> s;
    bool first, nesterov;

    S mixed(S old, S grad) const { return s.mixed(first ? S(-0.0) : old, grad); }  // first: the gradient to the bit
    S direction(S mixed, S grad) const { return s.direction(mixed, grad, nesterov); }
};

template <class Format, class State, class S = typename Format::S>
inline void sgd_tile(const Arrays<Format, State>& a, const SgdScalars<S> s, const Momentum<S> momentum, const Extra<S>& e,
                     const Noise& noise, int64_t first) {
    S param[tile], grad[tile];
    begin_tile(a, e, s.inv_scale, s.coupled_decay, param, grad);
    const uint32_t* __restrict const words = noise.words[1] + first;
    if constexpr (State::coded) {
        typename State::Raw raw[tile];
        typename State::Code codes[tile];
        S buf[tile];
        float by[groups];
        State::template unpack<true>(a.m, raw);
        for_groups([&](int64_t j) CURVK_INLINE {
            prefetch_span(a.m + j * group, group);
            return [&, scale = a.m_scale[j * group / State::scaled]](int64_t k, int64_t) CURVK_INLINE {
                buf[k] = momentum.mixed(State::template value<true>(raw[k], scale), grad[k]);
                grad[k] = momentum.direction(buf[k], grad[k]);
            };
        });
        State::measure(buf, a.m_scale, by);
        for_groups([&](int64_t j) CURVK_INLINE {
            return [&, r = by[j * group / State::scaled], word = words[j]](int64_t k, int64_t l) CURVK_INLINE {
                codes[k] = State::template code<true>(buf[k], r, spread(word, l));
            };
        });
        State::pack(codes, a.m, a.m_scale);
    } else if (auto* __restrict const m = a.m) {
        for_groups([&](int64_t j) CURVK_INLINE {
            prefetch_span(m + j * group, group);
            return [&, word = words[j]](int64_t k, int64_t l) CURVK_INLINE {
                const S mixed = momentum.mixed(State::load(m[k]), grad[k]);
                m[k] = State::store(mixed, spread(word, l));
                grad[k] = momentum.direction(mixed, grad[k]);
            };
        });
    }
    for (int64_t k = 0; k < tile; ++k) param[k] = param[k] * s.shrink - s.lr * grad[k];
    end_tile(a, e, param, noise, first);
}

// ---- Adam -------------------------------------------------------------------------------------------------------------

template <class Format, class State, class S = typename Format::S>
inline void adam_tile(const Arrays<Format, State>& a, const AdamScalars<S> s, const Extra<S>& e, const Noise& noise,
                      int64_t first) {
    S param[tile], grad[tile];
    begin_tile(a, e, s.inv_scale, s.coupled_decay, param, grad);
    const uint32_t *__restrict const m_words = noise.words[1] + first, *__restrict const v_words = noise.words[2] + first;
    if constexpr (State::coded) {
        typename State::Raw m_raw[tile], v_raw[tile];
        typename State::Code m_codes[tile], v_codes[tile];
        S m[tile], v[tile];
        float m_by[groups], v_by[groups];
        State::template unpack<true>(a.m, m_raw);
        State::template unpack<false>(a.v, v_raw);
        for_groups([&](int64_t j) CURVK_INLINE {
            const int64_t place = j * group / State::scaled;
            prefetch_span(a.m + j * group, group), prefetch_span(a.v + j * group, group);
            return [&, m_scale = a.m_scale[place], v_scale = a.v_scale[place]](int64_t k, int64_t) CURVK_INLINE {
                S one = State::template value<true>(m_raw[k], m_scale), two = State::template value<false>(v_raw[k], v_scale);
                adam_moments<false>(grad[k], one, two, two, s);
                m[k] = one;
                v[k] = two;
            };
        });
        State::measure(m, a.m_scale, m_by);
        State::measure(v, a.v_scale, v_by);
        // One loop, so that the integer work of the codes goes on while the divider makes roots and quotients.
        for_groups([&](int64_t j) CURVK_INLINE {
            const int64_t place = j * group / State::scaled;
            return [&, rm = m_by[place], rv = v_by[place], m_word = m_words[j], v_word = v_words[j]](int64_t k, int64_t l)
                       CURVK_INLINE {
                           param[k] = adam_param(param[k], m[k], v[k], s);
                           m_codes[k] = State::template code<true>(m[k], rm, spread(m_word, l));
                           v_codes[k] = State::template code<false>(v[k], rv, spread(v_word, l));
                       };
        });
        State::pack(m_codes, a.m, a.m_scale);
        State::pack(v_codes, a.v, a.v_scale);
    } else {
        auto *__restrict const m = a.m, *__restrict const v = a.v;
        S* __restrict const max_v = a.max_v;
        const auto step = [&](auto amsgrad) CURVK_INLINE {
            for_groups([&](int64_t j) CURVK_INLINE {
                prefetch_span(m + j * group, group), prefetch_span(v + j * group, group);
                return [&, m_word = m_words[j], v_word = v_words[j]](int64_t k, int64_t l) CURVK_INLINE {
                    S one = State::load(m[k]), two = State::load(v[k]), top = amsgrad.value ? max_v[k] : S(0);
                    const S divisor = adam_moments<amsgrad.value>(grad[k], one, two, top, s);
                    m[k] = State::store(one, spread(m_word, l));
                    v[k] = State::store(two, spread(v_word, l));
                    if constexpr (amsgrad.value) max_v[k] = top;
                    param[k] = adam_param(param[k], one, divisor, s);
                };
            });
        };
        if (max_v) step(Flag<true>{});
        else step(Flag<false>{});
    }
    end_tile(a, e, param, noise, first);
}

// ---- lists ------------------------------------------------------------------------------------------------------------

template <class X>
inline X* in_row(X* const* table, int64_t r) {
    return table ? table[r] : nullptr;
}

template <class S>
Extra<S> extra_of(CURVK_SWEEP_SCALARS) {
    return {rounding, zero_grad, S(ema_decay), S(1.0 - ema_decay), {uint64_t(seed), 0, uint32_t(draw)}};
}

#define TABLES(Format)                                                                                   \
    CURVK_SWEEP_TABLES(typename Format::T, typename Format::S), CURVK_SWEEP_KEYS, const int64_t* sizes, int64_t count
#define EXTRAS rounding, ema_decay, zero_grad, draw, seed

template <class State>
using States = typename State::T* const*;
using Scales = float* const*;
template <class Format>
using Params = typename Format::T* const*;

// `place` is that of `rounding` among the arguments of the caller, for the status.
template <class State, class Format>
int32_t sgd_list(int32_t place, States<State> m, Scales m_scale, Params<Format> p, Params<Format> g, TABLES(Format),
                 CURVK_SGD_SWEEP_SCALARS) {
    using S = typename Format::S;
    if (!can_round<Format>(rounding, low)) return place;
    const auto s = sgd_scalars<S>(lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale);
    const Momentum<S> direction{s, first != 0, nesterov != 0};
    const auto e = extra_of<S>(EXTRAS);
    const auto row = [=](int64_t r) {
        return Arrays<Format, State>{
            p[r], g[r], in_row(m, r), in_row(m_scale, r), nullptr, nullptr, nullptr, in_row(low, r), in_row(ema, r),
            in_row(shadow, r), in_row(origin, r)};
    };
    return for_tiles<State>(sizes, count, tensor, offset, e, row, [=](const auto& a, const Noise& noise, int64_t at) {
        sgd_tile(a, s, direction, e, noise, at);
    });
}

template <class State, class Format>
int32_t adam_list(int32_t place, States<State> m, Scales m_scale, States<State> v, Scales v_scale,
                  typename Format::S* const* max_v, Params<Format> p, Params<Format> g, TABLES(Format),
                  CURVK_ADAM_SWEEP_SCALARS) {
    using S = typename Format::S;
    if (!can_round<Format>(rounding, low)) return place;
    const auto s = adam_scalars<S>(step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale);
    const auto e = extra_of<S>(EXTRAS);
    const auto row = [=](int64_t r) {
        return Arrays<Format, State>{
            p[r], g[r], m[r], in_row(m_scale, r), v[r], in_row(v_scale, r), in_row(max_v, r), in_row(low, r), in_row(ema, r),
            in_row(shadow, r), in_row(origin, r)};
    };
    return for_tiles<State>(sizes, count, tensor, offset, e, row, [=](const auto& a, const Noise& noise, int64_t at) {
        adam_tile(a, s, e, noise, at);
    });
}

// ---- arrays to codes and back -----------------------------------------------------------------------------------------

template <class Format, bool is_signed>
void quantize_row(const float* x, uint8_t* codes, float* scale, int64_t n) {
    for (int64_t i = 0; i < n; i += tile) {
        const int64_t size = n - i < tile ? n - i : tile;
        float block[tile] = {}, scales[tile / group], by[tile / group];
        uint32_t made[tile];
        uint8_t stored[tile];
        memcpy(block, x + i, size_t(size) * sizeof *x);
        for (int64_t k = 0; !is_signed && k < tile; ++k) block[k] = magnitude(block[k]);
        Format::measure(block, scales, by);
        for_groups([&](int64_t j) CURVK_INLINE {
            return [&, r = by[j * group / Format::scaled]](int64_t k, int64_t) CURVK_INLINE {
                made[k] = Format::template code<is_signed>(block[k], r, to_nearest_bits);
            };
        });
        Format::pack(made, stored, scales);
        memcpy(codes + i, stored, size_t(size));
        memcpy(scale + i / Format::scaled, scales, size_t((size + Format::scaled - 1) / Format::scaled) * sizeof *scale);
    }
}

template <class Format, bool is_signed>
void dequantize_row(float* x, const uint8_t* codes, const float* scale, int64_t n) {
    for (int64_t i = 0; i < n; i += tile) {
        const int64_t size = n - i < tile ? n - i : tile;
        float block[tile], scales[tile / group] = {};
        typename Format::Raw raw[tile];
        uint8_t given[tile] = {};
        memcpy(given, codes + i, size_t(size));
        memcpy(scales, scale + i / Format::scaled, size_t((size + Format::scaled - 1) / Format::scaled) * sizeof *scale);
        Format::template unpack<is_signed>(given, raw);
        for_groups([&](int64_t j) CURVK_INLINE {
            return [&, s = scales[j * group / Format::scaled]](int64_t k, int64_t) CURVK_INLINE {
                block[k] = Format::template value<is_signed>(raw[k], s);
            };
        });
        memcpy(x + i, block, size_t(size) * sizeof *x);
    }
}

template <class Format>
int32_t quantize_list(const float* const* x, uint8_t* const* codes, float* const* scale, const int64_t* sizes, int64_t count,
                      int64_t is_signed) {
    const auto row = is_signed ? quantize_row<Format, true> : quantize_row<Format, false>;
    for_list<unit>(sizes, count, elementwise_grain / unit, [=](int64_t r, int64_t i, int64_t n) {
        row(x[r] + i, codes[r] + i, scale[r] + i / Format::scaled, n);
    });
    return 0;
}

template <class Format>
int32_t dequantize_list(float* const* x, const uint8_t* const* codes, const float* const* scale, const int64_t* sizes,
                        int64_t count, int64_t is_signed) {
    const auto row = is_signed ? dequantize_row<Format, true> : dequantize_row<Format, false>;
    for_list<unit>(sizes, count, elementwise_grain / unit, [=](int64_t r, int64_t i, int64_t n) {
        row(x[r] + i, codes[r] + i, scale[r] + i / Format::scaled, n);
    });
    return 0;
}

}  // namespace

#define COMMON low, ema, shadow, origin, tensor, offset, sizes, count
#define SGD COMMON, lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale, EXTRAS
#define ADAM COMMON, step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale, EXTRAS

#define SWEEP(FMT, T, S, Format)                                                                                      \
    int32_t curvk_sgd_sweep_list_##FMT(CURVK_SGD_SWEEP_LIST(T, S)) {                                                  \
        return sgd_list<Whole<S>, Format>(21, buf, nullptr, p, g, SGD);                                               \
    }                                                                                                                 \
    int32_t curvk_adam_sweep_list_##FMT(CURVK_ADAM_SWEEP_LIST(T, S)) {                                                \
        return adam_list<Whole<S>, Format>(23, m, nullptr, v, nullptr, max_v, p, g, ADAM);                            \
    }
#define SWEEP_SHORT(FMT, T, S, Format)                                                                                \
    SWEEP(FMT, T, S, Format)                                                                                          \
    int32_t curvk_sgd_sweep16_list_##FMT(CURVK_SGD_SWEEP16_LIST(T, S)) {                                              \
        return sgd_list<Short, Format>(21, buf, nullptr, p, g, SGD);                                                  \
    }                                                                                                                 \
    int32_t curvk_sgd_sweep8_list_##FMT(CURVK_SGD_SWEEP8_LIST(T, S)) {                                                \
        return sgd_list<Coded, Format>(22, buf, buf_scale, p, g, SGD);                                                \
    }                                                                                                                 \
    int32_t curvk_sgd_sweep8b_list_##FMT(CURVK_SGD_SWEEP8B_LIST(T, S)) {                                              \
        return sgd_list<Mapped, Format>(22, buf, buf_scale, p, g, SGD);                                               \
    }                                                                                                                 \
    int32_t curvk_adam_sweep16_list_##FMT(CURVK_ADAM_SWEEP16_LIST(T, S)) {                                            \
        return adam_list<Short, Format>(22, m, nullptr, v, nullptr, nullptr, p, g, ADAM);                             \
    }                                                                                                                 \
    int32_t curvk_adam_sweep8_list_##FMT(CURVK_ADAM_SWEEP8_LIST(T, S)) {                                              \
        return adam_list<Coded, Format>(24, m, m_scale, v, v_scale, nullptr, p, g, ADAM);                             \
    }                                                                                                                 \
    int32_t curvk_adam_sweep8b_list_##FMT(CURVK_ADAM_SWEEP8B_LIST(T, S)) {                                            \
        return adam_list<Mapped, Format>(24, m, m_scale, v, v_scale, nullptr, p, g, ADAM);                            \
    }
SWEEP(f64, double, double, F64)
SWEEP_SHORT(f32, float, float, F32)
SWEEP_SHORT(bf16, uint16_t, float, BF16)
SWEEP_SHORT(f16, uint16_t, float, F16)

int32_t curvk_quantize8_list_f32(CURVK_QUANTIZE_LIST(32)) {
    return quantize_list<Coded>(x, codes, scale, sizes, count, is_signed);
}
int32_t curvk_quantize8b_list_f32(CURVK_QUANTIZE_LIST(256)) {
    return quantize_list<Mapped>(x, codes, scale, sizes, count, is_signed);
}
int32_t curvk_dequantize8_list_f32(CURVK_DEQUANTIZE_LIST(32)) {
    return dequantize_list<Coded>(x, codes, scale, sizes, count, is_signed);
}
int32_t curvk_dequantize8b_list_f32(CURVK_DEQUANTIZE_LIST(256)) {
    return dequantize_list<Mapped>(x, codes, scale, sizes, count, is_signed);
}

}  // namespace CURVK_LEVEL
