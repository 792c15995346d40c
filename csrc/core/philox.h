// The noise stream: Philox4x32-10 words in the order that 64-bit vector lanes yield without shuffles, and what makes them
// noise. include/curvk/noise.h says what a tile is. Everything is integer code and IEEE operations in a fixed order, so
// the bits are the same everywhere.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__SSE4_2__)
#include <immintrin.h>
#endif

#include "core/lanes.h"

namespace CURVK_LEVEL {
namespace {

// ---- words ------------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int philox_lanes = 8;
#elif defined(__AVX2__)
constexpr int philox_lanes = 4;
#else
constexpr int philox_lanes = 2;
#endif

// 64-bit lanes, a block each. Only the low half of a word's lane counts; the high half may hold anything.
typedef uint64_t Words __attribute__((vector_size(8 * philox_lanes)));

// The 64-bit products of the low halves. GCC 12 makes three multiplications of the plain expression.
__attribute__((always_inline)) inline Words multiply(Words a, Words b) {
#if defined(__AVX512F__)
    return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE4_2__)
    return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

struct Block {
    Words c0, c1, c2, c3;

    __attribute__((always_inline)) inline void round(Words m0, Words m1, Words k0, Words k1) {
        const Words first = multiply(c0, m0), second = multiply(c2, m1);
        c0 = (second >> 32) ^ c1 ^ k0;
        c1 = second;
        c2 = (first >> 32) ^ c3 ^ k1;
        c3 = first;
    }

    // Words w0, w1 of these blocks, then 16 words behind the first of them w2, w3.
    __attribute__((always_inline)) inline void store(uint32_t* words) const {
        const Words low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
        memcpy(words, &low, sizeof low);
        memcpy(words + 16, &high, sizeof high);
    }
};

template <int count>
__attribute__((always_inline)) inline void ten_rounds(Block (&blocks)[count], uint32_t k0, uint32_t k1) {
    const Words zero = {}, m0 = zero + 0xd2511f53u, m1 = zero + 0xcd9e8d57u;
    for (int r = 0; r < 10; ++r) {
        for (int s = 0; s < count; ++s) blocks[s].round(m0, m1, zero + k0, zero + k1);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

constexpr int64_t tile_words = 32, tile_blocks = 8;
constexpr int64_t group_tiles = 4;  // made together, so that one multiplication's latency hides behind the others
constexpr int64_t group_words = group_tiles * tile_words;

struct Stream {
    uint64_t seed;
    uint32_t tensor, draw;

    // The words of the tiles 4 group .. 4 group + 3.
    void words(int64_t group, uint32_t* out) const {
        const uint64_t first = uint64_t(group) * (group_tiles * tile_blocks);
        constexpr int together = philox_lanes == 2 ? 2 : 4;  // v2 and v3 have 16 registers
        Words lane;
        for (int l = 0; l < philox_lanes; ++l) lane[l] = uint64_t(l);
        const Words zero = {};
        for (int64_t block = 0; block < group_tiles * tile_blocks; block += together * philox_lanes) {
            Block b[together];
            for (int s = 0; s < together; ++s)  // 2^32 is a multiple of a group, so the high word is one for all
                b[s] = {lane + (first + uint64_t(block + s * philox_lanes)), zero + (first >> 32), zero + tensor, zero + draw};
            ten_rounds(b, uint32_t(seed), uint32_t(seed >> 32));
            for (int s = 0; s < together; ++s) {
                const int64_t at = block + s * philox_lanes;
                b[s].store(out + at / tile_blocks * tile_words + at % tile_blocks * 2);
            }
        }
    }
};

// ---- from words to noise ------------------------------------------------------------------------------------------------

// Two normals from u in (0, 1] and an angle word (Box & Muller 1958), by minimax fits of our own (Remez exchange in 50
// digits, each coefficient rounded once). The radius is sqrt(-2 ln u): with u = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2),
// Precision::log approximates -2 ln(1 + f) / f. The angle's bit 31 negates both, bit 30 swaps them, and the other 30 are a
// signed fraction x of an eighth of a turn: Precision::sin and ::cos approximate sin(x pi/4) / x and cos(x pi/4) in x^2.
struct Fine {  // relative errors 2^-22.5, 2^-28.2 and 2^-25.1
    CURVK_HD static float log(float f) {
        return horner(f, -0x1.fffffep+0f, 0x1.00007ap+0f, -0x1.5559dcp-1f, 0x1.ff623cp-2f, -0x1.978e38p-2f, 0x1.614c1cp-2f,
                      -0x1.4c3cc8p-2f, 0x1.9df954p-3f);
    }
    CURVK_HD static float sin(float y) { return horner(y, 0x1.921fb6p-1f, -0x1.4abbbap-4f, 0x1.465e92p-9f, -0x1.2d9302p-15f); }
    CURVK_HD static float cos(float y) { return horner(y, 1.0f, -0x1.3bd392p-2f, 0x1.03af5cp-6f, -0x1.4e5ed6p-12f); }
};
struct Coarse {  // 2^-17.0, 2^-19.3 and 2^-16.6, below what 16 bits of radius resolve
    CURVK_HD static float log(float f) {
        return horner(f, -0x1.00004cp+1f, 0x1.ffe65cp-1f, -0x1.548feap-1f, 0x1.042126p-1f, -0x1.c3b498p-2f, 0x1.24b388p-2f);
    }
    CURVK_HD static float sin(float y) { return horner(y, 0x1.921f8ep-1f, -0x1.4aa60ap-4f, 0x1.3f3df0p-9f); }
    CURVK_HD static float cos(float y) { return horner(y, 0x1.fffeb2p-1f, -0x1.3ba49ap-2f, 0x1.f7b422p-7f); }
};

struct Pair {
    float first, second;
};

template <class Precision>
CURVK_HD __attribute__((always_inline)) inline Pair box_muller(float u, uint32_t angle) {
    constexpr int32_t root_half = 0x3f3504f3;
    const int32_t offset = bit_cast<int32_t>(u) - root_half + (127 << 23);
    const float k = float((offset >> 23) - 127);
    const float f = bit_cast<float>((offset & 0x7fffff) + root_half) - 1.0f;
    const float radius = sqrtf(k * -0x1.62e43p+0f + f * Precision::log(f));
    const float x = float(bit_cast<int32_t>(angle << 2)) * 0x1p-31f;
    const float y = x * x;
    const float s = x * Precision::sin(y), c = Precision::cos(y);
    const float turned = bit_cast<float>(bit_cast<uint32_t>(radius) ^ (angle & 0x80000000u));
    const bool swap = (angle & 0x40000000u) != 0;
    return {turned * (swap ? s : c), turned * (swap ? c : s)};
}

// A distribution turns a piece of a group's words into coef z, put into `out` or added to what is there. S is the type of
// the arithmetic; z is a float for both. `per_word` is the elements that a word gives.
template <bool adds, class S>
__attribute__((always_inline)) inline void put(S& out, S value) {
    out = adds ? out + value : value;
}

struct Normal {
    static constexpr bool signs = false;
    static constexpr int64_t per_word = 1, piece_words = group_words;
    template <bool adds, class S>
    static void fill(const uint32_t* __restrict words, S coef, S* __restrict out) {
        for (int64_t t = 0; t < piece_words; t += tile_words)
            for (int64_t j = 0; j < 16; ++j) {
                const Pair z = box_muller<Fine>(float(words[t + j]) * 0x1p-32f + 0x1p-33f, words[t + 16 + j]);
                put<adds>(out[t + j], coef * S(z.first));
                put<adds>(out[t + 16 + j], coef * S(z.second));
            }
    }
};

struct NormalFast {
    static constexpr bool signs = false;
    static constexpr int64_t per_word = 2, piece_words = group_words;
    template <bool adds, class S>
    static void fill(const uint32_t* __restrict words, S coef, S* __restrict out) {
        for (int64_t t = 0; t < piece_words; t += tile_words)
            for (int64_t j = 0; j < 32; ++j) {
                const uint32_t w = words[t + j];
                const Pair z = box_muller<Coarse>(float(int32_t(w & 0xffffu)) * 0x1p-16f + 0x1p-17f, w & 0xffff0000u);
                put<adds>(out[2 * t + j], coef * S(z.first));
                put<adds>(out[2 * t + 32 + j], coef * S(z.second));
            }
    }
};

struct Rademacher {
    static constexpr bool signs = true;
    static constexpr int64_t per_word = 32, piece_words = 16;  // a whole group's 16 KiB would crowd the L1 cache
    template <bool adds, class S>
    static void fill(const uint32_t* __restrict words, S coef, S* __restrict out) {
        for (int64_t m = 0; m < piece_words; ++m)
            for (int64_t b = 0; b < 32; ++b) put<adds>(out[32 * m + b], words[m] & bits[b] ? -coef : coef);
    }

   private:
    // A table, since v2 has no shift by a different count in each lane.
#define CURVK_BITS(b) 1u << b, 2u << b, 4u << b, 8u << b, 16u << b, 32u << b, 64u << b, 128u << b
    static constexpr uint32_t bits[32] = {CURVK_BITS(0), CURVK_BITS(8), CURVK_BITS(16), CURVK_BITS(24)};
#undef CURVK_BITS
};

struct Uniform {
    static constexpr bool signs = false;
    static constexpr int64_t per_word = 1, piece_words = group_words;
    template <bool adds, class S>
    static void fill(const uint32_t* __restrict words, S coef, S* __restrict out) {
        for (int64_t j = 0; j < piece_words; ++j) put<adds>(out[j], coef * S(float(int32_t(words[j] >> 8)) * 0x1p-24f));
    }
};

template <class D>
constexpr int64_t piece_span = D::piece_words * D::per_word;  // elements

// The noise of one draw, piece by piece; the words of a group are made once for its pieces.
template <class D, class S>
class Source {
   public:
    explicit Source(const Stream& stream) : stream_(stream) {}

    const S* operator()(int64_t piece, S coef) {
        constexpr int64_t pieces = group_words / D::piece_words;
        if (piece / pieces != group_) stream_.words(group_ = piece / pieces, words_);
        D::template fill<false>(words_ + piece % pieces * D::piece_words, coef, z_);
        return z_;
    }

   private:
    Stream stream_;
    int64_t group_ = -1;
    uint32_t words_[group_words];
    S z_[piece_span<D>];
};

#if defined(__AVX512BW__)
// Four draws of signs at once, for a group: each element's four bits select from the 16 sums that four coefficients can
// have, a third of the operations of four selections. Of each 64 elements, out[16 b + i] gets the one numbered 4 i + b:
// the permutation reads the low four bits of a lane, so bytes need no widening. in_order undoes it.
inline void add_four_signs(const uint32_t (&words)[4][group_words], const float* coefs, float* out) {
    float sums[16];
    for (int s = 0; s < 16; ++s) {
        sums[s] = s & 1 ? -coefs[0] : coefs[0];
        for (int j = 1; j < 4; ++j) sums[s] += s >> j & 1 ? -coefs[j] : coefs[j];
    }
    const __m512 table = _mm512_loadu_ps(sums);
    for (int64_t m = 0; m < group_words; m += 2) {
        __m512i select = _mm512_setzero_si512();
        for (int j = 0; j < 4; ++j) {
            uint64_t bits;
            memcpy(&bits, words[j] + m, sizeof bits);
            select = _mm512_mask_add_epi8(select, bits, select, _mm512_set1_epi8(char(1 << j)));
        }
        for (int b = 0; b < 4; ++b) {
            float* const to = out + 32 * m + 16 * b;
            const __m512i index = _mm512_maskz_srli_epi32(0xffff, select, unsigned(8 * b));
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_maskz_permutexvar_ps(0xffff, index, table)));
        }
    }
}

inline void in_order(float* out, int64_t n) {
    const __m512i first = _mm512_setr_epi32(0, 16, 0, 16, 1, 17, 1, 17, 2, 18, 2, 18, 3, 19, 3, 19);
    for (float* x = out; x < out + n; x += 64) {
        __m512 part[4];
        for (int b = 0; b < 4; ++b) part[b] = _mm512_loadu_ps(x + 16 * b);
        for (int c = 0; c < 4; ++c) {
            const __m512i from = _mm512_add_epi32(first, _mm512_set1_epi32(4 * c));
            const __m512 low = _mm512_permutex2var_ps(part[0], from, part[1]);
            const __m512 high = _mm512_permutex2var_ps(part[2], from, part[3]);
            _mm512_storeu_ps(x + 16 * c, _mm512_mask_blend_ps(0xcccc, low, high));
        }
    }
}
#endif

// The sum of many draws, formed for a group at a time: four at a time in order, then these sums in order.
template <class D, class S>
class SumSource {
   public:
    SumSource(uint64_t seed, uint32_t tensor, const int64_t* draws, const double* coefs, int64_t k)
        : seed_(seed), tensor_(tensor), draws_(draws), coefs_(coefs), k_(k) {}

    const S* operator()(int64_t piece) {
        constexpr int64_t pieces = group_words / D::piece_words;
        if (piece / pieces != group_) sum(group_ = piece / pieces);
        return sum_ + piece % pieces * piece_span<D>;
    }

   private:
    void sum(int64_t group) {
        for (S& x : sum_) x = S(-0.0);  // adding to it changes nothing, not even a zero's sign
        int64_t j = 0;
#if defined(__AVX512BW__)
        if constexpr (D::signs && sizeof(S) == 4) {
            for (; j + 4 <= k_; j += 4) add_four_signs(words_, make(group, j, 4), sum_);
            in_order(sum_, group_words * D::per_word);
        }
#endif
        for (; j < k_; j += 4) add(make(group, j, k_ - j < 4 ? k_ - j : 4), k_ - j < 4 ? k_ - j : 4);
    }

    // Makes the words of up to four draws; returns their coefficients.
    const S* make(int64_t group, int64_t first, int64_t count) {
        for (int64_t j = 0; j < count; ++j) {
            Stream{seed_, tensor_, uint32_t(draws_[first + j])}.words(group, words_[j]);
            four_[j] = S(coefs_[first + j]);
        }
        return four_;
    }

    void add(const S* coefs, int64_t count) {
        S part[piece_span<D>];
        for (int64_t w = 0; w < group_words; w += D::piece_words) {
            D::template fill<false>(words_[0] + w, coefs[0], part);
            for (int64_t j = 1; j < count; ++j) D::template fill<true>(words_[j] + w, coefs[j], part);
            for (int64_t i = 0; i < piece_span<D>; ++i) sum_[w * D::per_word + i] += part[i];
        }
    }

    uint64_t seed_;
    uint32_t tensor_;
    const int64_t* draws_;
    const double* coefs_;
    int64_t k_, group_ = -1;
    uint32_t words_[4][group_words];
    S four_[4], sum_[group_words * D::per_word] = {};
};

// Calls f(piece, skip, i, n) so that the indices offset .. offset + size are covered: elements i .. i + n of the array are
// elements skip .. skip + n of the piece.
template <class D, class F>
__attribute__((always_inline)) inline void for_pieces(int64_t offset, int64_t size, F f) {
    constexpr int64_t span = piece_span<D>;
    for (int64_t i = 0; i < size;) {
        const int64_t piece = (offset + i) / span, skip = (offset + i) % span;
        const int64_t n = size - i < span - skip ? size - i : span - skip;
        f(piece, skip, i, n);
        i += n;
    }
}

}  // namespace
}  // namespace CURVK_LEVEL
