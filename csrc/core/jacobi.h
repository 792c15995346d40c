// What Jacobi's methods of the CPU and of CUDA share. X is a number of type S or a vector of them, one for each matrix; M
// is bool or the vector that a comparison gives.
#pragma once

#include "core/kernel.h"

namespace CURVK_LEVEL {
namespace {

// `exponent`: the largest element is scaled to [2^exponent, 2^(exponent + 1)). Then squares and their products, times eps^2
// too, are normal numbers for columns longer than `vanishes`. `negligible`: eps^2 times the scale. `far`: beyond it and its
// inverse scaling takes a first step, by `lift`.
template <class S>
struct Jacobi;
template <>
struct Jacobi<float> {
    static constexpr int exponent = 24;
    static constexpr float eps = 0x1p-23f, vanishes = 0x1p-18f, negligible = 0x1p-22f, far = 0x1p60f, lift = 0x1p80f;
};
template <>
struct Jacobi<double> {
    static constexpr int exponent = 200;
    static constexpr double eps = 0x1p-52, vanishes = 0x1p60, negligible = 0x1p96, far = 0x1p400, lift = 0x1p600;
};
constexpr int sweeps = 40;

template <class X, class S>
CURVK_HD CURVK_INLINE inline X all(S x) {
    return X{} + x;
}
// f of each number.
template <class S, class X, class F>
CURVK_HD CURVK_INLINE inline X each(const X& x, F f) {
    if constexpr (sizeof(X) == sizeof(S)) {
        return f(x);
    } else {
        X y;
        for (int64_t l = 0; l < int64_t(sizeof(X) / sizeof(S)); ++l) y[l] = f(S(x[l]));
        return y;
    }
}
template <class S, class X>
CURVK_HD CURVK_INLINE inline X roots(const X& x) {
    return each<S>(x, [](S number) CURVK_INLINE { return root(number); });
}
template <class S, class X>
CURVK_HD CURVK_INLINE inline X absolute(const X& x) {
    return x < S(0) ? -x : x;
}

// Powers of two, so that first * second * x lies in [2^exponent, 2^(exponent + 1)) for the largest |x|, and their inverses.
template <class S, class X>
struct Scale {
    X first, second, back_second, back_first;

    CURVK_HD explicit Scale(const X& largest) {
        using R = Real<S>;
        using J = Jacobi<S>;
        using Bits = typename R::Bits;
        constexpr Bits target = R::bias + J::exponent;
        first = largest < S(1) / J::far ? all<X>(J::lift) : largest > J::far ? all<X>(S(1) / J::lift) : all<X>(S(1));
        back_first = largest < S(1) / J::far ? all<X>(S(1) / J::lift) : largest > J::far ? all<X>(J::lift) : all<X>(S(1));
        const X lifted = largest * first;
        const auto exponent = [](S number) CURVK_INLINE {  // biased
            return number > S(0) ? Bits(bit_cast<Bits>(number) >> R::digits) : target;
        };
        second = each<S>(lifted, [=](S number) CURVK_INLINE {
            return bit_cast<S>(Bits((target + R::bias - exponent(number)) << R::digits));
        });
        back_second = each<S>(lifted, [=](S number) CURVK_INLINE {
            return bit_cast<S>(Bits((exponent(number) + R::bias - target) << R::digits));
        });
    }
    CURVK_HD CURVK_INLINE X in(const X& x) const { return x * first * second; }
    CURVK_HD CURVK_INLINE X out(const X& x) const { return x * back_second * back_first; }
};

template <class S, class X, class M>
struct Rotation {
    X c, s, shift;
    M rotates, swaps;

    // The rotation that makes pq vanish and puts the larger diagonal element first, where `may` allows it and pq is large
    // enough; elsewhere c = 1, s = 0.
    CURVK_HD CURVK_INLINE void find(const X& pp, const X& qq, const X& pq, S tolerance2, const M& may) {
        rotates = may & (pq * pq > tolerance2 * absolute<S>(pp * qq));
        swaps = rotates & (absolute<S>(qq) > absolute<S>(pp));
        // With h = |qq - pp| + sqrt((qq - pp)^2 + (2 pq)^2) and n = sqrt(h^2 + (2 pq)^2): tangent 2 pq / h, cosine h / n,
        // sine 2 pq / n, signs aside. One division, by n h, gives all.
        const X difference = qq - pp, twice = pq + pq;
        const X h = absolute<S>(difference) + roots<S>(difference * difference + twice * twice);
        const X n = roots<S>(h * h + twice * twice), inverse = S(1) / (n * h);
        const X size = twice * (h * inverse), half = twice * (n * inverse) * pq;
        const M falls = difference < S(0);
        const X cosine = rotates ? h * (h * inverse) : all<X>(S(1));
        const X sine = rotates ? (falls ? -size : size) : X{};
        shift = rotates ? (falls ? -half : half) : X{};
        c = swaps ? -sine : cosine;
        s = swaps ? cosine : sine;
    }

    CURVK_HD CURVK_INLINE void diagonal(X& pp, X& qq) const {
        const X first = pp - shift, second = qq + shift;
        pp = swaps ? second : first;
        qq = swaps ? first : second;
    }
};

template <class X>
CURVK_HD CURVK_INLINE inline void rotate(const X& c, const X& s, X& a, X& b) {
    const X p = a, q = b;
    a = c * p - s * q;
    b = s * p + c * q;
}

template <class S, class X, class I>
CURVK_HD CURVK_INLINE inline X dot(const X* x, const X* y, I count) {
    X sum = {};
    for (I e = 0; e < count; ++e) sum += x[e] * y[e];
    return sum;
}

template <class S, class X, class I>
CURVK_HD inline X largest(const X* x, I count) {
    X most = {};
    for (I e = 0; e < count; ++e) most = absolute<S>(x[e]) > most ? absolute<S>(x[e]) : most;
    return most;
}

// The sign of the first of a vector's largest components.
template <class S, class X, class I>
CURVK_HD inline X sign_of(const X* x, I count) {
    X most = {}, value = {};
    for (I e = 0; e < count; ++e) {
        const auto more = absolute<S>(x[e]) > most;
        most = more ? absolute<S>(x[e]) : most;
        value = more ? x[e] : value;
    }
    return value < S(0) ? all<X>(S(-1)) : all<X>(S(1));
}

template <class S, class X, class I>
CURVK_HD inline void divide(X* x, I count, const X& divisor) {
    for (I e = 0; e < count; ++e) x[e] = x[e] / divisor + S(0);  // no -0
}

}  // namespace
}  // namespace CURVK_LEVEL
