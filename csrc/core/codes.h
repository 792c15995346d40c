// States and parameters in fewer bytes, as stages: a block of floats in the L1 cache from what is stored, and back.
// include/curvk/sweep.h has the formulas. Everything is integer code and IEEE operations in a fixed order.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/kernel.h"
#include "core/philox.h"

namespace CURVK_LEVEL {
namespace {

constexpr int64_t group = 32;   // elements that share one word of noise and, in curvk's 8-bit format, a scale
constexpr int64_t tile = 256;   // elements of a stage: enough chains of operations to hide their latencies
constexpr int64_t groups = tile / group;

constexpr int64_t unit = 1024;  // elements whose noise is made at once; rows are split at multiples of it

// The words of a unit's groups: four of each, for as many arrays.
struct Noise {
    uint32_t words[4][unit / group];

    void make(const Stream& stream, int64_t index) {
        uint32_t made[group_words];
        stream.words(index, made);
        for (int64_t t = 0; t < group_tiles; ++t)
            for (int64_t b = 0; b < tile_blocks; ++b)
                for (int64_t w = 0; w < 4; ++w)
                    words[w][t * tile_blocks + b] = made[t * tile_words + w / 2 * 16 + b * 2 + w % 2];
    }
};
static_assert(unit == group * group_tiles * tile_blocks, "a group has a block of noise");

// What element k of a group rounds with, from the group's word: a Weyl sequence, uniform in each place. One block of
// noise thus serves four arrays of 32 elements. A word takes some 0.4 ns to make, so one for each element of an array
// would add about a third to the step's 1.2 ns.
CURVK_HD inline uint32_t spread(uint32_t word, int64_t k) { return word + uint32_t(k) * 0x9e3779b9u; }

// The bits of the largest |x|; those of a NaN are above infinity's, so one shows.
template <int64_t n>
inline uint32_t largest(const float* __restrict x) {
    int32_t top = 0;
    for (int64_t k = 0; k < n; ++k) {
        const int32_t bits = bit_cast<int32_t>(x[k]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    return uint32_t(top);
}

// Bytes to 32-bit integers and back, 16 at a time: GCC goes by way of 16 bits, with three times the shuffles.
#if defined(__AVX512F__)
inline void widen(const uint8_t* __restrict bytes, int32_t* __restrict x, bool is_signed) {
    for (int64_t k = 0; k < tile; k += 16) {
        const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + k));
        const __m512i out = is_signed ? _mm512_maskz_cvtepi8_epi32(0xffff, in) : _mm512_maskz_cvtepu8_epi32(0xffff, in);
        _mm512_storeu_si512(x + k, out);
    }
}
inline void narrow(const uint32_t* __restrict x, uint8_t* __restrict bytes) {
    for (int64_t k = 0; k < tile; k += 16)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + k), _mm512_maskz_cvtepi32_epi8(0xffff, _mm512_loadu_si512(x + k)));
}
inline void narrow(const uint32_t* __restrict x, uint16_t* __restrict shorts) {
    for (int64_t k = 0; k < tile; k += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(shorts + k), _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_loadu_si512(x + k)));
}
#else
inline void widen(const uint8_t* __restrict bytes, int32_t* __restrict x, bool is_signed) {
    if (is_signed)
        for (int64_t k = 0; k < tile; ++k) x[k] = int8_t(bytes[k]);
    else
        for (int64_t k = 0; k < tile; ++k) x[k] = bytes[k];
}
template <class T>
inline void narrow(const uint32_t* __restrict x, T* __restrict stored) {
    for (int64_t k = 0; k < tile; ++k) stored[k] = T(x[k]);
}
#endif

constexpr uint32_t infinite = 0x7f800000u, lost = 0x7fc00000u;  // bits of the infinity and of a NaN
constexpr float rounder = 12582912.0f;  // 1.5 2^23: a sum with it has the nearest integer in its low bits

// ---- the kinds of states --------------------------------------------------------------------------------------------
// T is what is stored for an element. Those that are not `coded` are numbers each by itself, which load and store convert;
// store takes random bits where it is `random`.

template <class Real>
struct Whole {
    using T = Real;
    using S = Real;
    static constexpr int64_t scaled = tile;
    static constexpr bool coded = false, random = false;
    static constexpr int zero = 0;

    CURVK_HD static S load(T x) { return x; }
    CURVK_HD static T store(S x, uint32_t) { return x; }
};

struct Short {
    using T = uint16_t;
    using S = float;
    static constexpr int64_t scaled = tile;
    static constexpr bool coded = false, random = true;
    static constexpr int zero = 0;

    CURVK_HD static S load(T x) { return BF16::load(x); }
    CURVK_HD static T store(S x, uint32_t random) { return static_cast<T>(BF16::code(x, random)); }
};

// Codes have a scale for each `scaled` elements. A tile is loaded by `unpack`, then `value` for each element, whose scale is
// s. It is stored by `measure`, which finds the scales and their reciprocals, then `code` for each element, whose reciprocal
// is `by`, and `pack`. The steps between are in integers and floats of 32 bits: bytes beside them in one loop would halve
// the vectors.

// What the two 8-bit formats share: a float for each `length` codes.
template <int64_t length>
struct Scaled {
    using T = uint8_t;
    using S = float;
    using Code = uint32_t;
    static constexpr int64_t scaled = length;
    static constexpr bool coded = true;

    // The scale of a group whose largest |x| is `top`, and its reciprocal.
    CURVK_HD static float scale_of(float top, float& by) {
        const float normal = top > 0x1p-126f ? top : 0x1p-126f;  // the reciprocal of less would overflow
        by = 1.0f / normal;
        return top > 0.0f ? normal : top;
    }
    // Whether the group of a scale holds a NaN or an infinity: its scale is stored as NaN and its codes as 0.
    CURVK_HD static bool is_lost(float scale) { return bit_cast<uint32_t>(scale) >= infinite; }

    static void measure(const S* __restrict x, float* __restrict scale, float* __restrict by) {
        for (int64_t j = 0; j < tile / length; ++j) scale[j] = bit_cast<float>(largest<length>(x + j * length));
        for (int64_t j = 0; j < tile / length; ++j) scale[j] = scale_of(scale[j], by[j]);
    }
    static void pack(const Code* __restrict codes, T* __restrict stored, float* __restrict scale) {
        narrow(codes, stored);
        for (int64_t j = 0; j < tile / length; ++j)
            if (is_lost(scale[j])) {
                scale[j] = bit_cast<float>(lost);
                memset(stored + j * length, 0, length);
            }
    }
};

// Codes in groups of 32. A code is 512 units; random bits that are constant and half a unit round to nearest. Halving a
// float's bits takes its root, quartering its fourth root, linearly between powers of two: two integer operations each way.
// With exact roots and quotients the whole step took a fifth longer (2.45 ns an element for 2.05, one thread, in cache).
struct Coded : Scaled<group> {
    using Raw = int32_t;
    static constexpr bool random = true;
    static constexpr int zero = 0;

    template <bool is_signed>
    static void unpack(const T* __restrict codes, Raw* __restrict x) {
        widen(codes, x, is_signed);
    }
    template <bool is_signed>
    CURVK_HD static S value(Raw code, float s) {
        if (is_signed) {
            const uint32_t y = bit_cast<uint32_t>(float(code) * (1.0f / 127.0f));
            const int32_t square = int32_t((y << 1) - one);  // negative for code 0
            return bit_cast<float>(uint32_t(square > 0 ? square : 0) | (y & sign_bit)) * s;
        }
        const uint32_t y = bit_cast<uint32_t>(float(code) * (1.0f / 255.0f));
        return bit_cast<float>(y != 0 ? (y << 2) - 3u * one : 0u) * s;
    }
    template <bool is_signed>
    CURVK_HD static Code code(S x, float by, uint32_t random) {
        const uint32_t t = bit_cast<uint32_t>(x * by);
        if (is_signed) {
            // Half the bits below the sign, which an arithmetic shift doubles: the second one is cleared.
            const uint32_t y = (uint32_t(int32_t(t) >> 1) + one / 2) & ~(sign_bit >> 1);
            return rounded(bit_cast<float>(y) * (127.0f * 512.0f), random);
        }
        const uint32_t y = (t >> 2) + one / 4 * 3;
        const uint32_t c = rounded(bit_cast<float>(y) * (255.0f * 512.0f), random) & 0xffu;
        const uint32_t bits = bit_cast<uint32_t>(x), least = bits < 1u ? bits : 1u;  // 0 for 0 alone
        return c > least ? c : least;
    }

   private:
    static constexpr uint32_t one = 0x3f800000u, sign_bit = 0x80000000u;

    CURVK_HD static uint32_t rounded(float units, uint32_t random) {
        return (bit_cast<uint32_t>(units + rounder) + (random >> 23)) >> 9;
    }
};
constexpr uint32_t to_nearest_bits = 256u << 23;  // half a code

// The dynamic map of bitsandbytes (Dettmers et al. 2022) in blocks of 256: decade d = 0..6 of [0.1, 1] 10^(d - 6) is cut
// into 2^d cells (2^(d+1) unsigned) whose centers are the values, beside 0 and 1; sorted.
template <bool is_signed>
struct DynamicMap {
    float value[256], base[7], rate[7], edge[8];  // per decade: where it begins, cells per unit, least x that goes to it
    constexpr DynamicMap() : value(), base(), rate(), edge() {
        const int zero = is_signed ? 127 : 0;
        constexpr double scale[7] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
        double last = 0;
        for (int d = 0; d < 7; ++d) {
            const int cells = count(d);
            const double low = 0.1 * scale[d], width = 0.9 * scale[d] / cells;
            for (int j = 0; j < cells; ++j) {
                const float center = float(low + width * (j + 0.5));
                value[zero + first(d) + j] = center;
                if (is_signed) value[zero - first(d) - j] = -center;
            }
            base[d] = float(low);
            rate[d] = float(1 / width);
            edge[d] = float((last + low + width / 2) / 2);
            last = low + width * (cells - 0.5);
        }
        value[255] = 1;
        edge[7] = float((last + 1) / 2);
    }
    CURVK_HD static constexpr int count(int d) { return (is_signed ? 1 : 2) << d; }
    CURVK_HD static constexpr int first(int d) { return count(d) - (is_signed ? 0 : 1); }  // codes from 0's to the decade's first

    // Codes from 0's to that of the nearest value, for 0 <= x <= 1. The top value has no negative.
    CURVK_HD int32_t steps(float x, bool negative) const {
        float low = base[0], cells = rate[0];
        int32_t many = count(0);
        for (int d = 1; d < 7; ++d) {
            const bool above = x >= edge[d];
            low = above ? base[d] : low;
            cells = above ? rate[d] : cells;
            many = above ? count(d) : many;
        }
        // Towards 0, so that one just below the decade is its first; a NaN, which no integer stands for, is the last.
        const float cell = (x - low) * cells, last = float(many - 1);
        const int32_t within = many - (is_signed ? 0 : 1) + int32_t(cell < last ? cell : last);
        const int32_t found = x >= edge[0] ? within : 0;
        return x >= edge[7] && !negative ? 255 - (is_signed ? 127 : 0) : found;
    }
};

template <bool is_signed>
constexpr DynamicMap<is_signed> dynamic_map{};

struct Mapped : Scaled<256> {
    using Raw = float;
    static constexpr bool random = false;
    static constexpr int zero = 127;  // the signed code of 0

    template <bool is_signed>
    static void unpack(const T* __restrict codes, Raw* __restrict x) {
        for (int64_t k = 0; k < tile; ++k) x[k] = dynamic_map<is_signed>.value[codes[k]];
    }
    template <bool is_signed>
    CURVK_HD static S value(Raw x, float s) {
        return x * s;
    }
    template <bool is_signed>
    static Code code(S x, float by, uint32_t) {
        return code_in(dynamic_map<is_signed>, x, by);
    }
    template <bool is_signed>
    CURVK_HD static Code code_in(const DynamicMap<is_signed>& map, S x, float by) {
        const bool negative = is_signed && x < 0.0f;
        const int32_t steps = map.steps(magnitude(x) * by, negative);
        return uint32_t(is_signed ? zero + (negative ? -steps : steps) : steps);
    }
};

// ---- parameters -------------------------------------------------------------------------------------------------------

enum Rounding : int64_t { to_nearest, stochastic, kahan, split };

// Whether the rounding suits the format and has what it needs.
template <class Format, class T = typename Format::T>
bool can_round(int64_t rounding, T* const* low) {
    if (rounding == to_nearest) return true;
    if (sizeof(T) != 2 || (rounding >= kahan && !low)) return false;
    return rounding != split || Format::load(T(0x3f80)) == 1;
}

// The halves of split: `high` to nearest, `low` what is missing, up to 2^15 units either way.
CURVK_HD inline float joined(uint16_t high, uint16_t low) {
    return bit_cast<float>((uint32_t{high} << 16) + uint32_t(int32_t(int16_t(low))));
}
CURVK_HD inline void halve(float x, uint16_t& high, uint16_t& low) {
    const uint32_t u = x == x ? bit_cast<uint32_t>(x) : lost;
    high = uint16_t((u + 0x8000u) >> 16);
    low = uint16_t(u);
}

// Kahan's: `low` is what `high` lacks of x.
template <class Format, class T = typename Format::T>
CURVK_HD inline void compensate(float x, T& high, T& low) {
    high = Format::store(x);
    const float back = Format::load(high);
    low = Format::store(magnitude(back) < bit_cast<float>(infinite) ? x - back : 0.0f);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
inline void load_params(const T* __restrict p, const T* __restrict low, int64_t rounding, S* __restrict x) {
    if constexpr (sizeof(T) == 2) {
        if (rounding == kahan) {
            for (int64_t k = 0; k < tile; ++k) x[k] = Format::load(p[k]) + Format::load(low[k]);
            return;
        }
        if (rounding == split) {
            for (int64_t k = 0; k < tile; ++k) x[k] = joined(p[k], low[k]);
            return;
        }
    }
    for (int64_t k = 0; k < tile; ++k) x[k] = Format::load(p[k]);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
inline void store_params(const S* __restrict x, T* __restrict p, T* __restrict low, int64_t rounding,
                         const uint32_t* __restrict words) {
    if constexpr (sizeof(T) == 2) {
        uint32_t codes[tile];
        if (rounding == to_nearest) {
            for (int64_t k = 0; k < tile; ++k) codes[k] = Format::code(x[k]);
            return narrow(codes, p);
        }
        if (rounding == stochastic) {
            for (int64_t i = 0; i < tile; i += group)
                for (int64_t k = 0; k < group; ++k) codes[i + k] = Format::code(x[i + k], spread(words[i / group], k));
            return narrow(codes, p);
        }
        if (rounding == kahan) {
            for (int64_t k = 0; k < tile; ++k) compensate<Format>(x[k], p[k], low[k]);
            return;
        }
        if (rounding == split) {
            for (int64_t k = 0; k < tile; ++k) halve(x[k], p[k], low[k]);
            return;
        }
    } else {
        for (int64_t k = 0; k < tile; ++k) p[k] = Format::store(x[k]);
    }
}

}  // namespace
}  // namespace CURVK_LEVEL
