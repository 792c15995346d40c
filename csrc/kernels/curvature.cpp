#include "core/codes.h"
#include "core/curvature_rules.h"

namespace CURVK_LEVEL {
namespace {

// ---- the look-ahead point ---------------------------------------------------------------------------------------------

template <class Format, class T = typename Format::T, class S = typename Format::S>
void displace(T* __restrict p, const S* __restrict x, const S* __restrict z, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = Format::store(x[i] + z[i]);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
void copy(T* __restrict p, const S* __restrict x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = Format::store(x[i]);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t lookahead_list(CURVK_LOOKAHEAD_LIST(T, S)) {
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t begin, int64_t size) {
        T* const to = p[row] + begin;
        const S* const from = lookahead[row] + begin;
        if (scale == 0) return copy<Format>(to, from, size);
        Source<Rademacher, S> z({uint64_t(seed), uint32_t(tensor[row]), uint32_t(draw)});
        for_pieces<Rademacher>(offset[row] + begin, size, [&](int64_t piece, int64_t skip, int64_t i, int64_t n) {
            prefetch_span(from + i, n);
            displace<Format>(to + i, from + i, z(piece, S(scale)) + skip, n);
        });
    });
    return 0;
}

// ---- Alice ------------------------------------------------------------------------------------------------------------
// Modes are stages over blocks that stay in L1: loops add up where one loop for all combinations would multiply. Blocks are
// short, so that a stage's arithmetic runs while the next one's lines arrive.

constexpr int64_t stage_block = 64;

template <class Format, class T = typename Format::T, class S = typename Format::S>
void sample_glass(const T* __restrict g, const T* __restrict g_plus, const T* __restrict g_minus, S* __restrict glass,
                  int64_t n, const AliceScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S c = Format::load(g[i]) * s.inv_scale;
        const S a = Format::load(g_plus[i]) * s.inv_scale, b = Format::load(g_minus[i]) * s.inv_scale;
        glass[i] = averaged(density_of(c, a, b, s.two_inv_sigma), glass[i], s.beta3);
    }
}

template <class Format, Hess hess, class T = typename Format::T, class S = typename Format::S>
void sample_hessian(const T* __restrict g, const T* __restrict g_plus, const T* __restrict g_minus, S* __restrict hessian,
                    int64_t n, const AliceScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S a = Format::load(g_plus[i]) * s.inv_scale, b = Format::load(g_minus[i]) * s.inv_scale;
        const S x = hess == debiased ? row_norm_of(Format::load(g[i]) * s.inv_scale, a, b, s.inv_sigma) : slope_of<hess>(a, b, s);
        hessian[i] = averaged(x, hessian[i], s.beta3);
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
void second_moment(const T* __restrict g, S* __restrict exp_avg_sq, S* __restrict grad, int64_t n, const AliceScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        const S x = Format::load(g[i]) * s.inv_scale;
        grad[i] = x;
        exp_avg_sq[i] = second_average(x, exp_avg_sq[i], s);
    }
}

template <class S>
void regularise(const S* __restrict lookahead, S* __restrict grad, int64_t n, const AliceScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) grad[i] = regular(grad[i], lookahead[i], s);
}

// h of the step from its running estimate, which may be absent.
template <class S>
void curvature(const S* __restrict hessian, Hess hess, S l2, S* __restrict h, int64_t n) {
    if (hess == zero || !hessian)
        for (int64_t i = 0; i < n; ++i) h[i] = S(0);
    else if (hess == absolute)
        for (int64_t i = 0; i < n; ++i) h[i] = hessian[i];
    else
        for (int64_t i = 0; i < n; ++i) h[i] = rooted(hessian[i], hess == rms ? S(0) : l2);
}

// The first moment and the step. One loop, so that loads and stores hide behind the divider, which two or three roots and a
// division keep busy. `squared` takes h from the running mean of a square, and then adds `shift`.
template <class Format, Limit limit, bool squared, class T = typename Format::T, class S = typename Format::S>
void advance(T* __restrict p, const S* __restrict grad, S* __restrict exp_avg, const S* __restrict glass,
             const S* __restrict hessian, const S* __restrict exp_avg_sq, S* __restrict center, S* __restrict lookahead,
             int64_t n, const AliceScalars<S> s, S shift) {
    for (int64_t i = 0; i < n; ++i) {
        const S first = averaged(grad[i], exp_avg[i], s.beta1);
        exp_avg[i] = first;
        const S h = squared ? rooted(hessian[i], shift) : hessian[i];
        const S delta = delta_of<limit>(first, glass[i], h, exp_avg_sq[i], s);
        const S old = center[i], moved = old + s.phi * delta;
        lookahead[i] = old + s.omega * delta;
        center[i] = moved;
        p[i] = Format::store(moved);
    }
}

// While nothing moves: the first moment alone.
template <class Format, class T = typename Format::T, class S = typename Format::S>
void stand(T* __restrict p, const S* __restrict grad, S* __restrict exp_avg, const S* __restrict center, int64_t n,
           const AliceScalars<S> s) {
    for (int64_t i = 0; i < n; ++i) {
        exp_avg[i] = averaged(grad[i], exp_avg[i], s.beta1);
        p[i] = Format::store(center[i]);
    }
}

template <class Format, bool squared>
constexpr auto advance_loop(int64_t limit) {
    return limit == adam ? advance<Format, adam, squared> : limit == sgdm ? advance<Format, sgdm, squared> : advance<Format, fixed, squared>;
}

// The arrays of a block; glass, hessian, g_plus and g_minus may be null.
template <class T, class S>
struct AliceArrays {
    T* p;
    const T* g;
    S *exp_avg, *glass, *hessian, *exp_avg_sq, *center, *lookahead;
    const T *g_plus, *g_minus;
};

template <class Format, class T = typename Format::T, class S = typename Format::S>
class AliceStep {
   public:
    AliceStep(CURVK_ALICE_SCALARS)
        : s_(alice_scalars<S>(beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale)),
          mode_(Hess(hess)),
          regular_(s_.l1 != 0 || s_.l2 != 0),
          move_(move),
          sample_(mode_ == absolute ? sample_hessian<Format, absolute>
                  : mode_ == rms    ? sample_hessian<Format, rms>
                                    : sample_hessian<Format, debiased>),
          advance_(mode_ == rms || mode_ == debiased ? advance_loop<Format, true>(limit) : advance_loop<Format, false>(limit)),
          shift_(mode_ == debiased ? s_.l2 : S(0)) {}

    // n is at most a stage_block.
    void operator()(const AliceArrays<T, S>& a, int64_t n) const {
        const S none[stage_block] = {};
        S grad[stage_block];
        S* const estimate = mode_ == zero ? nullptr : a.hessian;
        if (a.g_plus && a.g_minus) {
            if (a.glass) sample_glass<Format>(a.g, a.g_plus, a.g_minus, a.glass, n, s_);
            if (estimate) sample_(a.g, a.g_plus, a.g_minus, estimate, n, s_);
        }
        second_moment<Format>(a.g, a.exp_avg_sq, grad, n, s_);
        if (regular_) regularise<S>(a.lookahead, grad, n, s_);
        if (!move_) return stand<Format>(a.p, grad, a.exp_avg, a.center, n, s_);
        advance_(a.p, grad, a.exp_avg, a.glass ? a.glass : none, estimate ? estimate : none, a.exp_avg_sq, a.center, a.lookahead,
                 n, s_, shift_);
    }

   private:
    AliceScalars<S> s_;
    Hess mode_;
    bool regular_;
    int64_t move_;
    decltype(&sample_hessian<Format, debiased>) sample_;
    decltype(advance_loop<Format, true>(0)) advance_;
    S shift_;
};

#define ALICE beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale

template <class X>
inline X* in_row(X* const* table, int64_t row, int64_t i) {
    return table ? table[row] + i : nullptr;
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t alice_list(CURVK_ALICE_LIST(T, S)) {
    const AliceStep<Format> step(ALICE);
    for_list(sizes, count, elementwise_grain / 2, [=](int64_t row, int64_t begin, int64_t size) {
        for (int64_t at = 0; at < size; at += stage_block) {
            const int64_t i = begin + at, n = size - at < stage_block ? size - at : stage_block;
            const AliceArrays<T, S> a{p[row] + i,
                                      g[row] + i,
                                      exp_avg[row] + i,
                                      in_row(glass, row, i),
                                      in_row(hessian, row, i),
                                      exp_avg_sq[row] + i,
                                      center[row] + i,
                                      lookahead[row] + i,
                                      in_row(g_plus, row, i),
                                      in_row(g_minus, row, i)};
            prefetch_span(a.g, n), prefetch_span(a.exp_avg, n), prefetch_span(a.exp_avg_sq, n), prefetch_span(a.center, n);
            if (a.glass) prefetch_span(a.glass, n);
            if (a.hessian) prefetch_span(a.hessian, n);
            if (a.g_plus && a.g_minus) prefetch_span(a.g_plus, n), prefetch_span(a.g_minus, n);
            step(a, n);
        }
    });
    return 0;
}

// A tile of an 8-bit state as floats. What lies behind the row's end is 0, which changes no scale.
template <bool is_signed>
class Decoded {
   public:
    // n elements from the i-th of a row; null tables give a null x.
    Decoded(uint8_t* const* codes, float* const* scale, int64_t row, int64_t i, int64_t n)
        : x(codes ? x_ : nullptr), n_(n), codes_(in_row(codes, row, i)), scale_(in_row(scale, row, i / group)) {
        if (!codes) return;
        uint8_t stored[tile] = {};
        float scales[groups] = {};
        int32_t raw[tile];
        memcpy(stored, codes_, size_t(n));
        memcpy(scales, scale_, size_t((n + group - 1) / group) * sizeof *scales);
        Coded::unpack<is_signed>(stored, raw);
        for (int64_t j = 0; j < groups; ++j)
            for (int64_t k = j * group; k < (j + 1) * group; ++k) x_[k] = Coded::value<is_signed>(raw[k], scales[j]);
    }
    Decoded(const Decoded&) = delete;  // x points into it
    void store(const uint32_t* words) {
        uint8_t stored[tile];
        float scales[groups], by[groups];
        uint32_t codes[tile];
        Coded::measure(x_, scales, by);
        for (int64_t j = 0; j < groups; ++j)
            for (int64_t l = 0; l < group; ++l)
                codes[j * group + l] = Coded::code<is_signed>(x_[j * group + l], by[j], spread(words[j], l));
        Coded::pack(codes, stored, scales);
        memcpy(codes_, stored, size_t(n_));
        memcpy(scale_, scales, size_t((n_ + group - 1) / group) * sizeof *scales);
    }
    float* const x;

   private:
    int64_t n_;
    uint8_t* codes_;
    float* scale_;
    float x_[tile];
};

template <class Format, class T = typename Format::T>
int32_t alice8_list(CURVK_ALICE8_LIST(T, float)) {
    const AliceStep<Format> step(ALICE);
    for_list<unit>(sizes, count, elementwise_grain / unit / 2, [=](int64_t row, int64_t begin, int64_t size) {
        Noise noise;
        for (int64_t i = begin; i < begin + size; i += tile) {
            if (i % unit == 0) noise.make({uint64_t(seed), uint32_t(tensor[row]), uint32_t(draw)}, (offset[row] + i) / unit);
            const int64_t first = i % unit / group, n = begin + size - i < tile ? begin + size - i : tile;
            Decoded<true> average(exp_avg, exp_avg_scale, row, i, n);
            Decoded<false> density(glass, glass_scale, row, i, n), square(exp_avg_sq, exp_avg_sq_scale, row, i, n);
            const bool sampled = g_plus && g_minus;
            const auto advance = [&](auto estimate) {
                for (int64_t at = 0; at < n; at += stage_block) {
                    const AliceArrays<T, float> a{p[row] + i + at,
                                                  g[row] + i + at,
                                                  average.x + at,
                                                  density.x ? density.x + at : nullptr,
                                                  estimate.x ? estimate.x + at : nullptr,
                                                  square.x + at,
                                                  center[row] + i + at,
                                                  lookahead[row] + i + at,
                                                  in_row(g_plus, row, i + at),
                                                  in_row(g_minus, row, i + at)};
                    step(a, n - at < stage_block ? n - at : stage_block);
                }
                average.store(noise.words[0] + first);
                if (sampled && density.x) density.store(noise.words[1] + first);
                if (sampled && estimate.x && hess != zero) estimate.store(noise.words[2] + first);
                square.store(noise.words[3] + first);
            };
            if (hess == debiased) advance(Decoded<true>(hessian, hessian_scale, row, i, n));
            else advance(Decoded<false>(hessian, hessian_scale, row, i, n));
        }
    });
    return 0;
}

// ---- sums -------------------------------------------------------------------------------------------------------------

void add_lanes(const double* __restrict x, int64_t n, double* __restrict total) {
    double lane[lanes];  // a local array of one loop: two arrays, or a struct's, stay in memory
    memcpy(lane, total, sizeof lane);
    const int64_t whole = n - n % lanes;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int64_t l = 0; l < lanes; ++l) lane[l] += x[i + l];
    for (int64_t l = 0; whole + l < n; ++l) lane[l] += x[whole + l];
    memcpy(total, lane, sizeof lane);
}

// out[k] <- sum over all elements of term k. f(row, i, n, terms) writes the terms of n <= stage_block elements.
template <int terms, class F>
int32_t sum_terms(const int64_t* sizes, int64_t count, double* out, F f) {
    const int64_t chunks = count_chunks(sizes, count);
    double* const partials = static_cast<double*>(malloc((size_t(chunks) * terms + 1) * sizeof(double)));
    if (!partials) return CURVK_NO_MEMORY;
    for_chunks(sizes, count, 1, [=](int64_t chunk, int64_t row, int64_t from, int64_t length) {
        double total[terms][lanes] = {}, term[terms][stage_block];
        for (int64_t i = from; i < from + length; i += stage_block) {
            const int64_t n = from + length - i < stage_block ? from + length - i : stage_block;
            f(row, i, n, term);
            for (int k = 0; k < terms; ++k) add_lanes(term[k], n, total[k]);
        }
        for (int k = 0; k < terms; ++k) partials[chunk * terms + k] = fold(total[k]);
    });
    for (int k = 0; k < terms; ++k) {
        out[k] = 0;
        for (int64_t c = 0; c < chunks; ++c) out[k] += partials[c * terms + k];
    }
    free(partials);
    return 0;
}

template <Limit limit, class S>
void model_terms(const S* __restrict exp_avg, const S* __restrict glass, const S* __restrict h, const S* __restrict exp_avg_sq,
                 int64_t n, S eps, S lr_min, S lr_max, S fraction, double* __restrict inside, double* __restrict change) {
    for (int64_t i = 0; i < n; ++i) {
        const auto step = bounded<limit>(exp_avg[i], glass[i], h[i], exp_avg_sq[i], eps, lr_min, lr_max);
        const S size = fraction * (limit == fixed ? step.value : magnitude(exp_avg[i]) * step.value);
        inside[i] = step.inside ? 1.0 : 0.0;
        change[i] = double(change_of(exp_avg[i], glass[i], h[i], size));
    }
}

template <class S>
int32_t model_list(CURVK_ALICE_MODEL_LIST(S)) {
    const Hess mode = Hess(hess);
    const auto fill = limit == adam ? model_terms<adam, S> : limit == sgdm ? model_terms<sgdm, S> : model_terms<fixed, S>;
    return sum_terms<2>(sizes, count, out, [=](int64_t row, int64_t i, int64_t n, double (&term)[2][stage_block]) {
        const S none[stage_block] = {};
        S h[stage_block];
        curvature<S>(hessian ? hessian[row] + i : nullptr, mode, S(l2), h, n);
        fill(exp_avg[row] + i, glass ? glass[row] + i : none, h, exp_avg_sq[row] + i, n, S(eps), S(lr_min), S(lr_max),
             S(fraction), term[0], term[1]);
    });
}

template <class Format, class T = typename Format::T>
void glass_terms(const T* __restrict g, const T* __restrict g_plus, const T* __restrict g_minus, int64_t n,
                 double* __restrict jump, double* __restrict change, double* __restrict product, double* __restrict square) {
    for (int64_t i = 0; i < n; ++i) {
        const ProbeTerms x =
            probe_terms(double(Format::load(g[i])), double(Format::load(g_plus[i])), double(Format::load(g_minus[i])));
        jump[i] = x.jump;
        change[i] = x.change;
        product[i] = x.product;
        square[i] = x.square;
    }
}

template <class Format, class T = typename Format::T>
int32_t glass_sums_list(CURVK_GLASS_SUMS_LIST(T)) {
    return sum_terms<4>(sizes, count, out, [=](int64_t row, int64_t i, int64_t n, double (&term)[4][stage_block]) {
        glass_terms<Format>(g[row] + i, g_plus[row] + i, g_minus[row] + i, n, term[0], term[1], term[2], term[3]);
    });
}

// ---- running moments --------------------------------------------------------------------------------------------------

template <class Format, bool density, class T = typename Format::T, class S = typename Format::S>
void moments(const T* __restrict g, const T* __restrict g_plus, const T* __restrict g_minus, S* __restrict mean,
             S* __restrict m2, int64_t n, S factor, S share) {
    for (int64_t i = 0; i < n; ++i) {
        const S c = Format::load(g[i]), a = Format::load(g_plus[i]), b = Format::load(g_minus[i]);
        welford(density ? density_of(c, a, b, factor) : row_norm_of(c, a, b, factor), mean[i], m2[i], share);
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t moments_list(CURVK_GLASS_MOMENTS_LIST(T, S)) {
    const S doubled = S(2.0 / sigma), single = S(1.0 / sigma), share = S(1.0 / double(sample));
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t begin, int64_t size) {
        for (int64_t at = 0; at < size; at += stage_block) {
            const int64_t i = begin + at, n = size - at < stage_block ? size - at : stage_block;
            const T *const c = g[row] + i, *const a = g_plus[row] + i, *const b = g_minus[row] + i;
            moments<Format, true>(c, a, b, rho[row] + i, rho_m2[row] + i, n, doubled, share);
            moments<Format, false>(c, a, b, h2[row] + i, h2_m2[row] + i, n, single, share);
        }
    });
    return 0;
}

// ---- SAM --------------------------------------------------------------------------------------------------------------

template <class Format, bool adaptive, class T = typename Format::T, class S = typename Format::S>
void ascend_and_swap(T* __restrict p, T* __restrict g, int64_t n, S scale, S eta) {
    for (int64_t i = 0; i < n; ++i) {
        const T w = p[i];
        p[i] = ascended<Format, adaptive>(w, g[i], scale, eta);
        g[i] = w;
    }
}

template <class Format, bool adaptive, class T = typename Format::T, class S = typename Format::S>
void ascend_and_save(T* __restrict p, const T* __restrict g, T* __restrict saved, int64_t n, S scale, S eta) {
    for (int64_t i = 0; i < n; ++i) {
        const T w = p[i];
        p[i] = ascended<Format, adaptive>(w, g[i], scale, eta);
        saved[i] = w;
    }
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t sam_list(CURVK_SAM_LIST(T)) {
    const auto swap = adaptive ? ascend_and_swap<Format, true> : ascend_and_swap<Format, false>;
    const auto save = adaptive ? ascend_and_save<Format, true> : ascend_and_save<Format, false>;
    for_list(sizes, count, elementwise_grain, [=](int64_t row, int64_t i, int64_t n) {
        if (saved) save(p[row] + i, g[row] + i, saved[row] + i, n, S(scale), S(eta));
        else swap(p[row] + i, g[row] + i, n, S(scale), S(eta));
    });
    return 0;
}

template <class Format, class T = typename Format::T>
void asam_terms(const T* __restrict p, const T* __restrict g, int64_t n, double eta, double scale, double* __restrict square) {
    for (int64_t i = 0; i < n; ++i) square[i] = asam_term(double(Format::load(p[i])), double(Format::load(g[i])), eta, scale);
}

template <class Format, class T = typename Format::T>
void non_finite_terms(const T* __restrict p, const T* __restrict g, int64_t n, double* __restrict bad) {
    for (int64_t i = 0; i < n; ++i) {
        const double w = double(Format::load(p[i])), x = double(Format::load(g[i]));
        bad[i] = w - w == 0 && x - x == 0 ? 0.0 : 1.0;
    }
}

template <class Format, class T = typename Format::T>
int32_t asam_norm_list(CURVK_ASAM_NORM_LIST(T)) {
    const auto norm = [=](int64_t row, int64_t i, int64_t n, double (&term)[1][stage_block]) {
        asam_terms<Format>(p[row] + i, g[row] + i, n, eta, scale, term[0]);
    };
    const auto bad = [=](int64_t row, int64_t i, int64_t n, double (&term)[1][stage_block]) {
        non_finite_terms<Format>(p[row] + i, g[row] + i, n, term[0]);
    };
    out[1] = 0;
    const int32_t status = sum_terms<1>(sizes, count, out, norm);
    // A finite sum has finite elements only; an infinite one may come of products that overflow.
    if (status || is_finite(out[0])) return status;
    double found = 0;
    const int32_t second = sum_terms<1>(sizes, count, &found, bad);
    out[1] = found > 0 ? 1.0 : 0.0;
    return second;
}

}  // namespace

#define CURVATURE(FMT, T, S, Format)                                                                                   \
    int32_t curvk_alice_lookahead_list_##FMT(CURVK_LOOKAHEAD_LIST(T, S)) {                                             \
        return lookahead_list<Format>(p, lookahead, tensor, offset, sizes, count, scale, draw, seed);                  \
    }                                                                                                                  \
    int32_t curvk_alice_step_list_##FMT(CURVK_ALICE_LIST(T, S)) {                                                      \
        return alice_list<Format>(p, g, exp_avg, glass, hessian, exp_avg_sq, center, lookahead, g_plus, g_minus,       \
                                  sizes, count, ALICE);                                                                \
    }                                                                                                                  \
    int32_t curvk_glass_sums_list_##FMT(CURVK_GLASS_SUMS_LIST(T)) {                                                    \
        return glass_sums_list<Format>(g, g_plus, g_minus, sizes, count, out);                                         \
    }                                                                                                                  \
    int32_t curvk_glass_moments_list_##FMT(CURVK_GLASS_MOMENTS_LIST(T, S)) {                                           \
        return moments_list<Format>(g, g_plus, g_minus, rho, rho_m2, h2, h2_m2, sizes, count, sample, sigma);          \
    }                                                                                                                  \
    int32_t curvk_sam_perturb_list_##FMT(CURVK_SAM_LIST(T)) {                                                          \
        return sam_list<Format>(p, g, saved, sizes, count, scale, adaptive, eta);                                      \
    }                                                                                                                  \
    int32_t curvk_asam_sum_squares_list_##FMT(CURVK_ASAM_NORM_LIST(T)) {                                               \
        return asam_norm_list<Format>(p, g, sizes, count, eta, scale, out);                                            \
    }
CURVATURE(f32, float, float, F32)
CURVATURE(f64, double, double, F64)
CURVATURE(bf16, uint16_t, float, BF16)
CURVATURE(f16, uint16_t, float, F16)

#define ALICE8                                                                                                       \
    p, g, exp_avg, exp_avg_scale, glass, glass_scale, hessian, hessian_scale, exp_avg_sq, exp_avg_sq_scale, center, \
        lookahead, g_plus, g_minus, tensor, offset, sizes, count, ALICE, draw, seed
int32_t curvk_alice_step8_list_f32(CURVK_ALICE8_LIST(float, float)) { return alice8_list<F32>(ALICE8); }
int32_t curvk_alice_step8_list_bf16(CURVK_ALICE8_LIST(uint16_t, float)) { return alice8_list<BF16>(ALICE8); }
int32_t curvk_alice_step8_list_f16(CURVK_ALICE8_LIST(uint16_t, float)) { return alice8_list<F16>(ALICE8); }

int32_t curvk_alice_model_list_f32(CURVK_ALICE_MODEL_LIST(float)) {
    return model_list<float>(exp_avg, glass, hessian, exp_avg_sq, sizes, count, eps, l2, lr_min, lr_max, fraction, hess, limit,
                             out);
}
int32_t curvk_alice_model_list_f64(CURVK_ALICE_MODEL_LIST(double)) {
    return model_list<double>(exp_avg, glass, hessian, exp_avg_sq, sizes, count, eps, l2, lr_min, lr_max, fraction, hess,
                              limit, out);
}

}  // namespace CURVK_LEVEL
