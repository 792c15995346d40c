// What vectorises the same way at every level. Vector math: branch-free exp and log that GCC vectorises, with the same
// bits at every level and in the Numba twin. Sums whose bits depend on the data and its length alone: 16 lanes, however
// wide the vectors, folded in a fixed tree.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)  // functions that CUDA kernels share
#define CURVK_HD __host__ __device__
#else
#define CURVK_HD
#endif

namespace CURVK_LEVEL {
namespace {

// ---- vector math ----------------------------------------------------------------------------------------------------
// No libm (its bits differ by platform), no table (v2 cannot gather), no FMA. The polynomials are minimax fits of our
// own by Remez exchange in 60 digits, each coefficient rounded once. exp_q approximates (e^r - 1 - r) / r^2 on
// |r| <= ln(2) / 2 with the least relative error of 1 + r + r^2 exp_q (2^-28.3 and 2^-57.9). log_q approximates
// (2 atanh(s) / s - 2) / s^2 as a function of z = s^2, 0 <= s <= (sqrt(2) - 1) / (sqrt(2) + 1), with the least relative
// error of s (2 + z log_q) (2^-30.2 and 2^-59.5).

template <class To, class From>
CURVK_HD inline To bit_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

template <class S>
CURVK_HD inline S horner(S, S last) {
    return last;
}
template <class S, class... More>
CURVK_HD inline S horner(S x, S first, More... more) {
    return first + x * horner(x, more...);
}

template <class S>
struct Real;

template <>
struct Real<float> {
    using Bits = uint32_t;
    static constexpr int digits = 23;  // stored bits of the significand
    static constexpr Bits bias = 127;
    static constexpr float infinity = __builtin_inff(), nan = __builtin_nanf("");
    static constexpr float least_normal = 0x1p-126f;
    static constexpr float exp_low = -105, exp_high = 89;  // beyond them exp is 0 and infinity
    static constexpr float log2e = 0x1.715476p+0f;
    static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // an 8-bit integer times high is exact
    static constexpr float root_half = 0x1.6a09e6p-1f;
    CURVK_HD static float exp_q(float r) {
        return horner(r, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558fp-5f, 0x1.1239c6p-7f, 0x1.6a2492p-10f);
    }
    CURVK_HD static float log_q(float z) { return horner(z, 0x1.55557ap-1f, 0x1.995e9cp-2f, 0x1.31e662p-2f); }
};

template <>
struct Real<double> {
    using Bits = uint64_t;
    static constexpr int digits = 52;
    static constexpr Bits bias = 1023;
    static constexpr double infinity = __builtin_inf(), nan = __builtin_nan("");
    static constexpr double least_normal = 0x1p-1022;
    static constexpr double exp_low = -746, exp_high = 710;
    static constexpr double log2e = 0x1.71547652b82fep+0;
    static constexpr double ln2_high = 0x1.62e42fefa4p-1, ln2_low = -0x1.8432a1b0e2634p-43;  // 11-bit
    static constexpr double root_half = 0x1.6a09e667f3bcdp-1;
    CURVK_HD static double exp_q(double r) {
        return horner(r, 0x1.0000000000009p-1, 0x1.55555555554fap-3, 0x1.55555555508eap-5, 0x1.1111111127b4p-7,
                      0x1.6c16c18415a39p-10, 0x1.a01a012a69b07p-13, 0x1.a0199a3dda405p-16, 0x1.71df256bdeb0bp-19,
                      0x1.28ad48ec71ebbp-22, 0x1.ad7ef155de4b7p-26);
    }
    CURVK_HD static double log_q(double z) {
        return horner(z, 0x1.5555555555593p-1, 0x1.999999997fb4p-2, 0x1.2492494216bbbp-2, 0x1.c71c51e8beae1p-3,
                      0x1.7466460133713p-3, 0x1.39a0f99d77fbdp-3, 0x1.2f0d5de4c4a2ap-3);
    }
};

// e^x. Largest error in units in the last place: 0.78 for float (all 2^32), 0.79 for double (2.4e8 samples); both among
// denormal results, which round twice.
template <class S>
CURVK_HD __attribute__((always_inline)) inline S exp_of(S x) {
    using R = Real<S>;
    using Bits = typename R::Bits;
    const S above = x < R::exp_low ? R::exp_low : x;  // a NaN passes both selects
    const S bounded = above > R::exp_high ? R::exp_high : above;
    // Adding 1.5 2^digits rounds to an integer that the sum's low bits hold: v2 and v3 convert no double to 64 bits.
    constexpr S rounder = S(Bits{3} << (R::digits - 1));
    const S shifted = bounded * R::log2e + rounder;
    const S k = shifted - rounder;
    const S high = bounded - k * R::ln2_high;  // exact
    const S low = k * R::ln2_low;
    const S r = high - low;
    const S tail = r * r * R::exp_q(r) - low;
    // 1 + high + tail; the error of the first sum goes into the second.
    const S one_high = S(1) + high;
    const S value = one_high + ((high - (one_high - S(1))) + tail);
    // 2^k in two factors, so that neither leaves the normal numbers and only the last product rounds. The bias is added
    // twice before the halving, which keeps the shift unsigned: v2 and v3 have no signed one for 64 bits.
    const Bits both = bit_cast<Bits>(shifted) - (bit_cast<Bits>(rounder) - 2 * R::bias);
    const Bits half = both >> 1;
    return value * bit_cast<S>(half << R::digits) * bit_cast<S>((both - half) << R::digits);
}

// Natural logarithm; log(0) is -infinity, of a negative number NaN. Largest error in units in the last place: 0.91 for
// float (all 2^32), 0.94 for double (2.4e8 samples), both just below sqrt(1/2).
template <class S>
CURVK_HD __attribute__((always_inline)) inline S log_of(S x) {
    using R = Real<S>;
    using Bits = typename R::Bits;
    constexpr int lift = R::digits + 2;
    const bool subnormal = x < R::least_normal;
    const S normal = subnormal ? x * S(Bits{1} << lift) : x;
    // normal = 2^k m with m in [sqrt(1/2), sqrt(2)).
    const Bits root_half = bit_cast<Bits>(R::root_half);
    const Bits offset = bit_cast<Bits>(normal) - root_half + (R::bias << R::digits);
    const Bits significand = (Bits{1} << R::digits) - 1;
    const S m = bit_cast<S>((offset & significand) + root_half);
    const S base = S(Bits{1} << R::digits);  // its low bits count units: an integer becomes a real without a conversion
    const S biased = bit_cast<S>((offset >> R::digits) | bit_cast<Bits>(base));
    const S k = biased - (base + S(R::bias)) - (subnormal ? S(lift) : S(0));
    // log(1 + f) = f - tail, with s = f / (2 + f) and log(1 + f) = 2 atanh(s).
    const S f = m - S(1);
    const S s = f / (S(2) + f);
    const S z = s * s;
    const S square = S(0.5) * f * f;
    const S tail = square - s * (square + z * R::log_q(z));
    // k ln(2) + f - tail; the error of the first sum goes into the last.
    const S whole = k * R::ln2_high;  // exact
    const S sum = whole + f;
    const S value = sum + ((f - (sum - whole)) - (tail - k * R::ln2_low));
    const S special = x == S(0) ? -R::infinity : x > S(0) ? x : R::nan;
    return x > S(0) && x < R::infinity ? value : special;
}

// ---- fixed-lane sums ------------------------------------------------------------------------------------------------

constexpr int64_t lanes = 16;

inline double fold(double* lane) {
    for (int64_t half = lanes / 2; half > 0; half /= 2)
        for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
    return lane[0];
}

inline double dot(const double* __restrict x, const double* __restrict y, int64_t n) {
    double lane[lanes] = {};
    const int64_t whole = n / lanes * lanes;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int64_t l = 0; l < lanes; ++l) lane[l] += x[i + l] * y[i + l];
    for (int64_t l = 0; l < n - whole; ++l) lane[l] += x[whole + l] * y[whole + l];
    return fold(lane);
}

CURVK_HD inline bool is_finite(double x) { return x - x == 0; }

}  // namespace
}  // namespace CURVK_LEVEL
