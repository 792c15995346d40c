// The zeros of secular functions: the eigenvalues of a diagonal matrix after a change of rank one (Bunch, Nielsen &
// Sorensen 1978). One zero in each lane of a vector, with the same bits however many lanes there are.
#pragma once

#include "core/kernel.h"
#include "core/simd.h"

namespace CURVK_LEVEL {
namespace {

constexpr int64_t most_poles = 512, padding = 8;  // arrays are padded to the widest vector
constexpr int64_t width = Vector<double>::width;
typedef int64_t Mask __attribute__((vector_size(vector_bytes)));

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
CURVK_INLINE inline Doubles load(const double* x) { return Vector<double>::load(x); }
CURVK_INLINE inline Doubles absolute(const Doubles& x) { return x < 0.0 ? -x : x; }
CURVK_INLINE inline Doubles roots(const Doubles& x) {
    Doubles y;
    for (int64_t l = 0; l < width; ++l) y[l] = sqrt(x[l]);
    return y;
}
inline bool any(const Mask& mask) {
    int64_t words[width], found = 0;
    memcpy(words, &mask, sizeof words);
    for (int64_t word : words) found |= word;
    return found != 0;
}

// The inverses of four numbers by one division.
CURVK_INLINE inline void invert(Doubles* x) {
    const Doubles first = x[0] * x[1], second = x[2] * x[3], both = 1.0 / (first * second);
    const Doubles of_first = both * second, of_second = both * first;
    const Doubles x0 = x[0], x2 = x[2];
    x[0] = of_first * x[1];
    x[1] = of_first * x0;
    x[2] = of_second * x[3];
    x[3] = of_second * x2;
}

// The zeros of f(x) = 1 + sum_j w_j / (pole_j - x) for w > 0 and ascending poles, one in each lane. Zero i lies between
// poles i and i + 1, the last one behind the last pole, and is held as origin[i] + tau[i].
struct Secular {
    int64_t count = 0;
    // Behind `count` there are poles far off, without weight.
    double pole[most_poles + padding], w[most_poles + padding], origin[most_poles + padding], tau[most_poles + padding];

    void solve() {
        double total = 0;
        if (count == 1)
            for (int64_t i = 0; i < padding; ++i) origin[i] = pole[0], tau[i] = w[0];
        for (int64_t j = 0; j < count; ++j) total += w[j];
        for (int64_t i = 0; count > 1 && i < count; i += width) solve(i, total * (1 + 0x1p-40));
    }

   private:
    struct Sums {
        Doubles below, below_slope, above, above_slope;  // over the poles up to `low`, and over those behind
        Doubles value() const { return 1.0 + above + below; }
    };

    template <int side>  // -1 where the pole is below in every lane, 1 where it is above, 0 where `is_below` says it
    static CURVK_INLINE void add(Sums& sums, const Doubles& inverse, double weight, const Mask& is_below) {
        const Doubles term = weight * inverse, slope = term * inverse, none = {};
        if (side <= 0) {
            sums.below += side < 0 || is_below ? term : none;
            sums.below_slope += side < 0 || is_below ? slope : none;
        }
        if (side >= 0) {
            sums.above += side > 0 || !is_below ? term : none;
            sums.above_slope += side > 0 || !is_below ? slope : none;
        }
    }

    Sums evaluate(const Doubles& from, const Doubles& at, const Doubles& low, int64_t first, int64_t last) const {
        Sums sums = {};
        for (int64_t j = 0; j < count; j += 4) {
            Doubles gap[4];
            for (int64_t t = 0; t < 4; ++t) gap[t] = (pole[j + t] - from) - at;
            invert(gap);
            if (j + 3 <= first)
                for (int64_t t = 0; t < 4; ++t) add<-1>(sums, gap[t], w[j + t], Mask{});
            else if (j > last)
                for (int64_t t = 0; t < 4; ++t) add<1>(sums, gap[t], w[j + t], Mask{});
            else
                for (int64_t t = 0; t < 4; ++t) add<0>(sums, gap[t], w[j + t], double(j + t) <= low);
        }
        return sums;
    }

    // The zero of c x^2 - a x + b that lies between the two poles or, where `flip` is -1, behind them.
    static CURVK_INLINE Doubles between(const Doubles& a, const Doubles& b, const Doubles& c, const Doubles& flip) {
        const Doubles turned = flip * a, root = roots(absolute(a * a - 4.0 * b * c));
        const Mask falls = turned <= 0.0;
        return flip * ((falls ? turned - root : 2.0 * b) / (falls ? 2.0 * c : turned + root));
    }

    void solve(int64_t i, double total) {
        const int64_t first = i < count - 2 ? i : count - 2, last = i + width - 1 < count - 2 ? i + width - 1 : count - 2;
        Doubles low, low_pole, high_pole, low_w, high_w, half, flip;
        for (int64_t l = 0; l < width; ++l) {
            const int64_t at = i + l < count - 2 ? i + l : count - 2;
            const bool end = i + l > count - 2;
            low[l] = double(at);
            low_pole[l] = pole[at];
            high_pole[l] = pole[at + 1];
            low_w[l] = w[at];
            high_w[l] = w[at + 1];
            half[l] = 0.5 * (end ? total : pole[at + 1] - pole[at]);
            flip[l] = end ? -1 : 1;
        }
        const Doubles zero = {};
        const Mask end = flip < 0.0;
        Sums sums = evaluate(end ? high_pole : low_pole, half, low, first, last);
        Doubles f = sums.value();
        const Mask before = f >= 0.0;  // the zero lies before the middle
        const Doubles from = before & ~end ? low_pole : high_pole;
        const Doubles low_at = low_pole - from, high_at = high_pole - from;
        Doubles at = before | end ? half : -half;
        Doubles lower = before ? zero : at, upper = before ? half : end ? zero + total : zero;
        {
            const Doubles rest = f - low_w / (low_at - at) - high_w / (high_at - at);
            const Doubles a = rest * (low_at + high_at) + (low_w + high_w), b = low_w * high_at + high_w * low_at;
            const Doubles next = between(a, b, rest, flip);
            at = (next > lower) & (next < upper) ? next : 0.5 * (lower + upper);
        }
        Mask open = zero == 0.0;
        const double tolerance = double(count) * 0x1p-53;
        for (int step = 0; step < 100 && any(open); ++step) {
            sums = evaluate(from, at, low, first, last);
            f = sums.value();
            open &= !(absolute(f) <= tolerance * (1.0 + absolute(sums.below) + absolute(sums.above)));
            lower = f < 0.0 ? at : lower;
            upper = f < 0.0 ? upper : at;
            const Doubles x = low_at - at, y = high_at - at, slope = sums.below_slope + sums.above_slope;
            const Doubles c = f - x * sums.below_slope - y * sums.above_slope;
            const Doubles guess = between((x + y) * f - x * y * slope, x * y * f, c, flip);
            const Doubles move = f * guess > 0.0 ? -f / slope : guess, next = at + move;
            const Mask inside = (next > lower) & (next < upper);
            const Mask near = inside & (absolute(move) <= 0x1p-30 * absolute(at));
            at = open ? (inside ? next : 0.5 * (lower + upper)) : at;
            open &= ~near;
        }
        Vector<double>::store(origin + i, from);
        Vector<double>::store(tau + i, at);
    }
};

}  // namespace
}  // namespace CURVK_LEVEL
