// What an element's curvature arithmetic is, for the loops of the CPU and of CUDA. include/curvk/curvature.h has the
// formulas; scalars are formed in double and rounded once.
#pragma once

#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/curvature.h"
namespace {

// ---- Alice ------------------------------------------------------------------------------------------------------------

enum Hess : int64_t { zero, absolute, rms, debiased };
enum Limit : int64_t { adam, sgdm, fixed };

template <class S>
struct AliceScalars {
    S inv_scale, beta1, beta2, gain2, beta3, half_inv_sigma, two_inv_sigma, inv_sigma, eps, l1, l2, l2_squared, lr_min, lr_max, phi,
        omega;
};

template <class S>
AliceScalars<S> alice_scalars(CURVK_ALICE_SCALARS) {
    (void)hess, (void)limit, (void)move;
    return {S(1.0 / grad_scale), S(beta1), S(beta2), S(1.0 - beta2), S(beta3), S(0.5 / sigma), S(2.0 / sigma), S(1.0 / sigma), S(eps),
            S(l1), S(l2), S(l2 * l2), S(lr_min), S(lr_max), S(phi), S(omega)};
}

// The gradients g, g+ and g- give a sample of the glass density,
template <class S>
CURVK_HD inline S density_of(S g, S plus, S minus, S two_inv_sigma) {
    const S d = S(0.5) * (plus + minus) - g;
    return d * d * two_inv_sigma;
}
// one of the Hessian's squared row norm,
template <class S>
CURVK_HD inline S row_norm_of(S g, S plus, S minus, S inv_sigma) {
    return -(((plus - g) * inv_sigma) * ((minus - g) * inv_sigma));
}
// and one of its size or, for rms, of the square, which need no g.
template <Hess hess, class S>
CURVK_HD inline S slope_of(S plus, S minus, const AliceScalars<S>& s) {
    const S slope = (plus - minus) * s.half_inv_sigma;
    return hess == absolute ? magnitude(slope) + s.l2 : slope * slope + s.l2_squared;
}

template <class S>
CURVK_HD inline S averaged(S x, S mean, S beta) {
    return x + beta * (mean - x);
}
// Infinite, not NaN, where the square overflows.
template <class S>
CURVK_HD inline S second_average(S x, S mean, const AliceScalars<S>& s) {
    return s.beta2 * mean + s.gain2 * (x * x);
}
template <class S>
CURVK_HD inline S regular(S grad, S lookahead, const AliceScalars<S>& s) {
    return (grad + (lookahead < 0 ? -s.l1 : s.l1)) + s.l2 * lookahead;
}

// h from the running mean of a square.
template <class S>
CURVK_HD inline S rooted(S hessian, S shift) {
    return root(hessian < 0 ? S(0) : hessian) + shift;
}

constexpr double density_factor = 0.23873241463784300365;  // 3 / (4 pi)
constexpr double density_cost = 0.46065886596178063902;    // sqrt(2 / (3 pi))

template <class S>
struct Bounded {
    S value;
    bool inside;
};

// q = b / d or, with `fixed`, a q, between its bounds lr_min / r and lr_max / r. One division serves all three: products
// compare the fractions, and a NaN compares false, which gives the upper bound.
template <Limit limit, class S>
CURVK_HD inline Bounded<S> bounded(S exp_avg, S glass, S h, S exp_avg_sq, S eps, S lr_min, S lr_max) {
    const S a = magnitude(exp_avg), b = a + eps, k = S(density_factor) * glass, hb = h * b;
    const S d = ((k + hb) + root(k * (k + S(2) * hb))) + eps * b;
    const S r = limit == adam ? root(exp_avg_sq) + eps : S(1), top = limit == fixed ? a * b : b, product = top * r;
    const bool below = product < lr_min * d, under = product < lr_max * d;
    return {(below ? lr_min : under ? top : lr_max) / (under && !below ? d : r), under && product > lr_min * d};
}

template <Limit limit, class S>
CURVK_HD inline S delta_of(S exp_avg, S glass, S h, S exp_avg_sq, const AliceScalars<S>& s) {
    const S x = bounded<limit>(exp_avg, glass, h, exp_avg_sq, s.eps, s.lr_min, s.lr_max).value;
    return limit == fixed ? (exp_avg < 0 ? x : -x) : -(exp_avg * x);
}

// The change of the loss that the model predicts for a step of `size`, which is positive.
template <class S>
CURVK_HD inline S change_of(S exp_avg, S glass, S h, S size) {
    const S a = magnitude(exp_avg);
    return (S(0.5) * h * size * size - a * size) + S(density_cost) * root(glass) * (size * root(size));
}

// ---- probes and SAM ---------------------------------------------------------------------------------------------------

template <class S>
CURVK_HD inline void welford(S x, S& mean, S& m2, S share) {
    const S before = x - mean, now = mean + before * share;
    mean = now;
    m2 = m2 + before * (x - now);
}

struct ProbeTerms {
    double jump, change, product, square;
};
CURVK_HD inline ProbeTerms probe_terms(double g, double plus, double minus) {
    const double d = 0.5 * (plus + minus) - g, up = plus - g, down = minus - g;
    return {d * d, 0.5 * (up * up + down * down), -(up * down), g * g};
}

template <class Format, bool adaptive, class T = typename Format::T, class S = typename Format::S>
CURVK_HD inline T ascended(T p, T g, S scale, S eta) {
    const S w = Format::load(p), t = magnitude(w) + eta;
    return Format::store(w + (adaptive ? t * t * Format::load(g) : Format::load(g)) * scale);
}

CURVK_HD inline double asam_term(double p, double g, double eta, double scale) {
    const double x = (magnitude(p) + eta) * g * scale;
    return x * x;
}

}  // namespace
}  // namespace CURVK_LEVEL
