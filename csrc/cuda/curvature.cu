#include "core/curvature_rules.h"
#include "cuda/codes.cuh"
#include "cuda/sums.cuh"

namespace CURVK_LEVEL {
namespace {

// ---- the look-ahead point ---------------------------------------------------------------------------------------------

enum LookaheadColumn : int { ahead_p, ahead_from, ahead_tensor, ahead_offset };

// p <- lookahead + z or, without `moves`, lookahead. A chunk's signs lie in shared memory: a word serves 32 elements, so
// noise costs some 4 operations an element, beside 8 bytes.
template <class Format, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    lookahead(CURVK_GRID_CONSTANT(Rows) rows, S scale, bool moves, uint64_t seed, uint32_t draw) {
    constexpr int tile_signs = int(tile_words) * 32, tiles = int(chunk_elements) / tile_signs + 1;
    __shared__ uint32_t words[tiles * tile_words + 1];  // a read takes two
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    T* const p = rows.address<T>(ahead_p, part.row, part.begin);
    const S* const from = rows.address<const S>(ahead_from, part.row, part.begin);
    const uint64_t first = rows.at(ahead_offset, part.row) + uint64_t(part.begin);
    const int skip = int(first % tile_signs), own = int(threadIdx.x);
    if (own < tiles * int(tile_blocks)) {
        const Stream stream{seed, uint32_t(rows.at(ahead_tensor, part.row)), draw};
        const FourWords w = words_of(stream, first / tile_signs * tile_blocks + uint64_t(own));
        uint32_t* const to = words + own / int(tile_blocks) * int(tile_words) + own % int(tile_blocks) * 2;
        for (int j = 0; j < 4; ++j) to[j / 2 * 16 + j % 2] = w.w[j];
    }
    __syncthreads();
    for_packs<4>(part.size, packs_aligned<4>(p, from), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        const int j = skip + int(i);
        const uint32_t* const word = words + j / 32;
        const uint32_t bits = uint32_t(((uint64_t{word[1]} << 32) | word[0]) >> j % 32);
        const auto x = load<V>(from, i);
        Pack<T, V> to;
        for (int k = 0; k < V; ++k) to[k] = Format::store(moves ? x[k] + (bits & 1u << k ? -scale : scale) : x[k]);
        store<V>(p, i, to);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t lookahead_list(CURVK_LOOKAHEAD_LIST(T, S), void* stream) {
    const auto part = [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("alice_lookahead", ::CURVK_LEVEL::lookahead<Format>, chunks, block_threads, stream, rows, S(scale),
                      scale != 0, uint64_t(seed), uint32_t(draw));
    };
    return for_rows(sizes, count, chunk_elements, {p, lookahead, tensor, offset}, part);
}

// ---- Alice ------------------------------------------------------------------------------------------------------------
// The whole step of four neighbours in registers: in float32 and at a sample step it reads 32 bytes and writes 28 an
// element. The averages are numbers or codes.

enum AliceColumn : int {
    at_p,
    at_g,
    at_exp_avg,
    at_exp_avg_scale,
    at_glass,
    at_glass_scale,
    at_hessian,
    at_hessian_scale,
    at_exp_avg_sq,
    at_exp_avg_sq_scale,
    at_center,
    at_lookahead,
    at_plus,
    at_minus,
    at_tensor,
    at_offset
};

template <class S>
struct AliceModes {
    AliceScalars<S> s;
    S shift;
    Hess hess;
    bool regular, squared, move;
};

template <class S>
AliceModes<S> alice_modes(CURVK_ALICE_SCALARS) {
    const auto s =
        alice_scalars<S>(beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale);
    return {s, hess == debiased ? s.l2 : S(0), Hess(hess), s.l1 != 0 || s.l2 != 0, hess == rms || hess == debiased, move != 0};
}

template <class S>
__device__ __forceinline__ S hessian_sample(Hess hess, S g, S plus, S minus, const AliceScalars<S>& s) {
    if (hess == debiased) return row_norm_of(g, plus, minus, s.inv_sigma);
    return hess == absolute ? slope_of<absolute>(plus, minus, s) : slope_of<rms>(plus, minus, s);
}

template <class Format, bool full, class T, class S = typename Format::S>
__device__ __forceinline__ Pack<S, width> load_gradients(const T* g, const Share<full, 1>& share, S inv_scale) {
    const auto stored = share.read(g);
    Pack<S, width> x;
    for (int k = 0; k < width; ++k) x[k] = Format::load(stored[k]) * inv_scale;
    return x;
}

template <class State>
__device__ __forceinline__ States<State> states_of(const Rows& rows, const Unit& u, int column) {
    return {rows.optional<typename State::T>(column, u.row, u.begin),
            rows.optional<float>(column + 1, u.row, u.begin / State::scaled), nullptr};
}

template <class Format, class State, Limit limit, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    alice_step(CURVK_GRID_CONSTANT(Rows) rows, const AliceModes<S> modes, Stream stream) {
    using Four = Pack<S, width>;
    const AliceScalars<S>& s = modes.s;
    const Unit u = unit_of(rows);
    T* const p = rows.address<T>(at_p, u.row, u.begin);
    const T* const g = rows.address<const T>(at_g, u.row, u.begin);
    const auto exp_avg = states_of<State>(rows, u, at_exp_avg), glass = states_of<State>(rows, u, at_glass);
    const auto hessian = states_of<State>(rows, u, at_hessian), exp_avg_sq = states_of<State>(rows, u, at_exp_avg_sq);
    S* const center = rows.address<S>(at_center, u.row, u.begin);
    S* const lookahead = rows.address<S>(at_lookahead, u.row, u.begin);
    const T* const g_plus = rows.optional<const T>(at_plus, u.row, u.begin);
    const T* const g_minus = rows.optional<const T>(at_minus, u.row, u.begin);
    const bool samples = g_plus && g_minus, estimates = modes.hess != zero && hessian.x;
    Dither dither = {};
    if (State::random) {
        stream.tensor = uint32_t(rows.at(at_tensor, u.row));
        const uint64_t of_unit = (rows.at(at_offset, u.row) + uint64_t(u.begin)) / unit;
        dither.own = words_of(stream, of_unit * (unit / group) + threadIdx.x % warp);
    }
    const bool aligned = packs_aligned<width>(p, g, g_plus, g_minus, center, lookahead) &&
                         packs_aligned<width>(exp_avg.x, glass.x, hessian.x, exp_avg_sq.x);
    for_steps<1>(u.size, aligned, [&](const auto& share) {
        const auto bits = [&](int word) { return State::random ? dither.bits(word, share) : Pack<uint32_t, width>{}; };
        Four grad = load_gradients<Format>(g, share, s.inv_scale), plus = {}, minus = {}, density = {}, h = {}, ahead = {};
        if (samples) plus = load_gradients<Format>(g_plus, share, s.inv_scale);
        if (samples) minus = load_gradients<Format>(g_minus, share, s.inv_scale);
        if (glass.x) density = load_states<false>(glass, share);
        if (estimates) h = modes.hess == debiased ? load_states<true>(hessian, share) : load_states<false>(hessian, share);
        if (modes.regular) ahead = share.read(lookahead);
        Four first = load_states<true>(exp_avg, share), second = load_states<false>(exp_avg_sq, share), old = share.read(center);
        if (samples && glass.x) {
            for (int k = 0; k < width; ++k)
                density[k] = averaged(density_of(grad[k], plus[k], minus[k], s.two_inv_sigma), density[k], s.beta3);
            store_states<false>(glass, share, density, bits(1));
        }
        if (samples && estimates) {
            for (int k = 0; k < width; ++k)
                h[k] = averaged(hessian_sample(modes.hess, grad[k], plus[k], minus[k], s), h[k], s.beta3);
            if (modes.hess == debiased) store_states<true>(hessian, share, h, bits(2));
            else store_states<false>(hessian, share, h, bits(2));
        }
        for (int k = 0; k < width; ++k) {
            second[k] = second_average(grad[k], second[k], s);
            if (modes.regular) grad[k] = regular(grad[k], ahead[k], s);
            first[k] = averaged(grad[k], first[k], s.beta1);
        }
        store_states<true>(exp_avg, share, first, bits(0));
        store_states<false>(exp_avg_sq, share, second, bits(3));
        if (modes.move) {
            for (int k = 0; k < width; ++k) {
                if (modes.squared) h[k] = rooted(h[k], modes.shift);
                const S delta = delta_of<limit>(first[k], density[k], h[k], second[k], s);
                ahead[k] = old[k] + s.omega * delta;
                old[k] = old[k] + s.phi * delta;
            }
            share.write(lookahead, ahead);
            share.write(center, old);
        }
        Pack<T, width> stored;
        for (int k = 0; k < width; ++k) stored[k] = Format::store(old[k]);
        share.write(p, stored);
    });
}

#define ALICE beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale

template <class Format, class State>
int32_t alice_list(const char* name, std::initializer_list<Column> columns, const int64_t* sizes, int64_t count,
                   CURVK_ALICE_SCALARS, int64_t draw, int64_t seed, void* stream) {
    const auto modes = alice_modes<typename Format::S>(ALICE);
    const auto kernel = limit == adam   ? alice_step<Format, State, adam>
                        : limit == sgdm ? alice_step<Format, State, sgdm>
                                        : alice_step<Format, State, fixed>;
    return for_rows(sizes, count, sweep_chunk, columns, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch(name, kernel, chunks, block_threads, stream, rows, modes, Stream{uint64_t(seed), 0, uint32_t(draw)});
    });
}

// ---- sums -------------------------------------------------------------------------------------------------------------

enum ModelColumn : int { model_exp_avg, model_glass, model_hessian, model_exp_avg_sq };

template <class S>
struct ModelScalars {
    S eps, l2, lr_min, lr_max, fraction;
    Hess hess;
};

template <Limit limit, class S>
__global__ void __launch_bounds__(block_threads)
    model_terms(CURVK_GRID_CONSTANT(Rows) rows, double* partials, const ModelScalars<S> s) {
    const Part part = part_of(rows, blockIdx.x, sum_chunk);
    const S* const exp_avg = rows.address<const S>(model_exp_avg, part.row, part.begin);
    const S* const glass = rows.optional<const S>(model_glass, part.row, part.begin);
    const S* const hessian = rows.optional<const S>(model_hessian, part.row, part.begin);
    const S* const exp_avg_sq = rows.address<const S>(model_exp_avg_sq, part.row, part.begin);
    const bool estimates = s.hess != zero && hessian;
    sum_part<2>(part, partials + 2 * blockIdx.x, [&](int i, double (&term)[2]) {
        const S first = exp_avg[i], second = exp_avg_sq[i], density = glass ? glass[i] : S(0);
        S h = estimates ? hessian[i] : S(0);
        if (estimates && s.hess != absolute) h = rooted(h, s.hess == rms ? S(0) : s.l2);
        const auto step = bounded<limit>(first, density, h, second, s.eps, s.lr_min, s.lr_max);
        const S size = s.fraction * (limit == fixed ? step.value : magnitude(first) * step.value);
        term[0] = step.inside ? 1.0 : 0.0;
        term[1] = double(change_of(first, density, h, size));
    });
}

template <class S>
int32_t model_list(CURVK_ALICE_MODEL_LIST(S), void* stream) {
    const auto kernel = limit == adam ? model_terms<adam, S> : limit == sgdm ? model_terms<sgdm, S> : model_terms<fixed, S>;
    const ModelScalars<S> s{S(eps), S(l2), S(lr_min), S(lr_max), S(fraction), Hess(hess)};
    return sum_list<2>("alice_model", kernel, add_chunks<2>, {exp_avg, glass, hessian, exp_avg_sq}, sizes, count, 1.0, out,
                       stream, s);
}

enum ProbeColumn : int { probe_g, probe_plus, probe_minus, probe_rho, probe_rho_m2, probe_h2, probe_h2_m2 };

template <class Format, class T = typename Format::T>
__global__ void __launch_bounds__(block_threads) glass_terms(CURVK_GRID_CONSTANT(Rows) rows, double* partials) {
    const Part part = part_of(rows, blockIdx.x, sum_chunk);
    const T* const g = rows.address<const T>(probe_g, part.row, part.begin);
    const T* const plus = rows.address<const T>(probe_plus, part.row, part.begin);
    const T* const minus = rows.address<const T>(probe_minus, part.row, part.begin);
    sum_part<4>(part, partials + 4 * blockIdx.x, [&](int i, double (&term)[4]) {
        const ProbeTerms x =
            probe_terms(double(Format::load(g[i])), double(Format::load(plus[i])), double(Format::load(minus[i])));
        term[0] = x.jump;
        term[1] = x.change;
        term[2] = x.product;
        term[3] = x.square;
    });
}

template <class Format, class T = typename Format::T>
int32_t glass_sums_list(CURVK_GLASS_SUMS_LIST(T), void* stream) {
    return sum_list<4>("glass_sums", glass_terms<Format>, add_chunks<4>, {g, g_plus, g_minus}, sizes, count, 1.0, out, stream);
}

// ---- running moments --------------------------------------------------------------------------------------------------

template <class Format, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads) moments(CURVK_GRID_CONSTANT(Rows) rows, S two_inv_sigma, S inv_sigma, S share) {
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    const T* const g = rows.address<const T>(probe_g, part.row, part.begin);
    const T* const g_plus = rows.address<const T>(probe_plus, part.row, part.begin);
    const T* const g_minus = rows.address<const T>(probe_minus, part.row, part.begin);
    S* const rho = rows.address<S>(probe_rho, part.row, part.begin);
    S* const rho_m2 = rows.address<S>(probe_rho_m2, part.row, part.begin);
    S* const h2 = rows.address<S>(probe_h2, part.row, part.begin);
    S* const h2_m2 = rows.address<S>(probe_h2_m2, part.row, part.begin);
    for_packs<4>(part.size, packs_aligned<4>(g, g_plus, g_minus, rho, rho_m2, h2, h2_m2), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        const auto center = load<V>(g, i), plus = load<V>(g_plus, i), minus = load<V>(g_minus, i);
        auto mean = load<V>(rho, i), m2 = load<V>(rho_m2, i), norm = load<V>(h2, i), norm_m2 = load<V>(h2_m2, i);
        for (int k = 0; k < V; ++k) {
            const S c = Format::load(center[k]), a = Format::load(plus[k]), b = Format::load(minus[k]);
            welford(density_of(c, a, b, two_inv_sigma), mean[k], m2[k], share);
            welford(row_norm_of(c, a, b, inv_sigma), norm[k], norm_m2[k], share);
        }
        store<V>(rho, i, mean);
        store<V>(rho_m2, i, m2);
        store<V>(h2, i, norm);
        store<V>(h2_m2, i, norm_m2);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t moments_list(CURVK_GLASS_MOMENTS_LIST(T, S), void* stream) {
    const auto part = [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("glass_moments", moments<Format>, chunks, block_threads, stream, rows, S(2.0 / sigma), S(1.0 / sigma),
                      S(1.0 / double(sample)));
    };
    return for_rows(sizes, count, chunk_elements, {g, g_plus, g_minus, rho, rho_m2, h2, h2_m2}, part);
}

// ---- SAM --------------------------------------------------------------------------------------------------------------

enum SamColumn : int { sam_p, sam_g, sam_saved };

template <class Format, bool adaptive, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads) ascend(CURVK_GRID_CONSTANT(Rows) rows, S scale, S eta) {
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    T* const p = rows.address<T>(sam_p, part.row, part.begin);
    T* const g = rows.address<T>(sam_g, part.row, part.begin);
    T* const saved = rows.optional<T>(sam_saved, part.row, part.begin);
    for_packs<4>(part.size, packs_aligned<4>(p, g, saved), [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        const auto old = load<V>(p, i);
        auto moved = load<V>(g, i);
        for (int k = 0; k < V; ++k) moved[k] = ascended<Format, adaptive>(old[k], moved[k], scale, eta);
        store<V>(p, i, moved);
        store<V>(saved ? saved : g, i, old);
    });
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sam_list(CURVK_SAM_LIST(T), void* stream) {
    const auto kernel = adaptive ? ascend<Format, true> : ascend<Format, false>;
    return for_rows(sizes, count, chunk_elements, {p, g, saved}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch("sam_perturb", kernel, chunks, block_threads, stream, rows, S(scale), S(eta));
    });
}

// partials[2 chunk] <- the chunk's sum, the next one <- 1 if an element of it is not finite. The CPU looks for such
// elements where the sum is not finite; otherwise there are none.
template <class Format, class T = typename Format::T>
__global__ void __launch_bounds__(block_threads)
    asam_terms(CURVK_GRID_CONSTANT(Rows) rows, double* partials, double eta, double scale) {
    const Part part = part_of(rows, blockIdx.x, sum_chunk);
    const T* const p = rows.address<const T>(sam_p, part.row, part.begin);
    const T* const g = rows.address<const T>(sam_g, part.row, part.begin);
    sum_flagged(part, partials + 2 * blockIdx.x, [&](int i, bool& finite) {
        const double w = double(Format::load(p[i])), x = double(Format::load(g[i]));
        finite = is_finite(w) && is_finite(x);
        return asam_term(w, x, eta, scale);
    });
}

template <class Format, class T = typename Format::T>
int32_t asam_norm_list(CURVK_ASAM_NORM_LIST(T), void* stream) {
    return sum_list<2>("asam_sum_squares", asam_terms<Format>, add_flagged, {p, g}, sizes, count, 1.0, out, stream, eta, scale);
}

}  // namespace

#define CURVATURE(FMT, T, S, Format)                                                                                          \
    int32_t curvk_alice_lookahead_list_##FMT(CURVK_LOOKAHEAD_LIST(T, S), void* stream) {                                      \
        return lookahead_list<Format>(p, lookahead, tensor, offset, sizes, count, scale, draw, seed, stream);                 \
    }                                                                                                                         \
    int32_t curvk_alice_step_list_##FMT(CURVK_ALICE_LIST(T, S), void* stream) {                                               \
        return alice_list<Format, Whole<S>>("alice_step",                                                                     \
                                            {p, g, exp_avg, nullptr, glass, nullptr, hessian, nullptr, exp_avg_sq, nullptr,   \
                                             center, lookahead, g_plus, g_minus, nullptr, nullptr},                           \
                                            sizes, count, ALICE, 0, 0, stream);                                               \
    }                                                                                                                         \
    int32_t curvk_glass_sums_list_##FMT(CURVK_GLASS_SUMS_LIST(T), void* stream) {                                             \
        return glass_sums_list<Format>(g, g_plus, g_minus, sizes, count, out, stream);                                        \
    }                                                                                                                         \
    int32_t curvk_glass_moments_list_##FMT(CURVK_GLASS_MOMENTS_LIST(T, S), void* stream) {                                    \
        return moments_list<Format>(g, g_plus, g_minus, rho, rho_m2, h2, h2_m2, sizes, count, sample, sigma, stream);         \
    }                                                                                                                         \
    int32_t curvk_sam_perturb_list_##FMT(CURVK_SAM_LIST(T), void* stream) {                                                   \
        return sam_list<Format>(p, g, saved, sizes, count, scale, adaptive, eta, stream);                                     \
    }                                                                                                                         \
    int32_t curvk_asam_sum_squares_list_##FMT(CURVK_ASAM_NORM_LIST(T), void* stream) {                                        \
        return asam_norm_list<Format>(p, g, sizes, count, eta, scale, out, stream);                                           \
    }
CURVATURE(f32, float, float, F32)
CURVATURE(f64, double, double, F64)
CURVATURE(bf16, uint16_t, float, BF16)
CURVATURE(f16, uint16_t, float, F16)

#define ALICE8(FMT, T, Format)                                                                                                \
    int32_t curvk_alice_step8_list_##FMT(CURVK_ALICE8_LIST(T, float), void* stream) {                                         \
        return alice_list<Format, Coded>("alice_step8",                                                                       \
                                         {p, g, exp_avg, exp_avg_scale, glass, glass_scale, hessian, hessian_scale,           \
                                          exp_avg_sq, exp_avg_sq_scale, center, lookahead, g_plus, g_minus, tensor, offset},  \
                                         sizes, count, ALICE, draw, seed, stream);                                            \
    }
ALICE8(f32, float, F32)
ALICE8(bf16, uint16_t, BF16)
ALICE8(f16, uint16_t, F16)

#define MODEL(FMT, S)                                                                                                         \
    int32_t curvk_alice_model_list_##FMT(CURVK_ALICE_MODEL_LIST(S), void* stream) {                                           \
        return model_list<S>(exp_avg, glass, hessian, exp_avg_sq, sizes, count, eps, l2, lr_min, lr_max, fraction, hess,      \
                             limit, out, stream);                                                                             \
    }
MODEL(f32, float)
MODEL(f64, double)

}  // namespace CURVK_LEVEL
