// Storage formats. A Format tells how an element is stored (T), in which type it is computed (S), and converts one
// element each way; the 16-bit ones also stochastically, by `code`, which leaves the narrowing to the caller. The 16-bit
// conversions are integer code with selects instead of branches, so that they vectorise at every level and give the same
// bits as F16C, which v2 lacks.
#pragma once

#include <stdint.h>

#include "core/lanes.h"

namespace CURVK_LEVEL {
namespace {

struct F32 {
    using T = float;
    using S = float;
    CURVK_HD static S load(T x) { return x; }
    CURVK_HD static T store(S x) { return x; }
};

struct F64 {
    using T = double;
    using S = double;
    CURVK_HD static S load(T x) { return x; }
    CURVK_HD static T store(S x) { return x; }
};

struct BF16 {
    using T = uint16_t;
    using S = float;
    CURVK_HD static S load(T x) { return bit_cast<float>(uint32_t{x} << 16); }
    // A NaN is only made quiet: it must not round up to infinity.
    CURVK_HD static uint32_t code(S x) {
        const uint32_t u = bit_cast<uint32_t>(x);
        const uint32_t rounded = u + (0x7fffu + ((u >> 16) & 1u));  // to nearest, ties to even
        return (x == x ? rounded : u | quiet) >> 16;
    }
    // Up or down by uniform bits, so that the mean is x; the upper 16 count.
    CURVK_HD static uint32_t code(S x, uint32_t random) {
        const uint32_t u = bit_cast<uint32_t>(x);
        return (x == x ? u + (random >> 16) : u | quiet) >> 16;
    }
    CURVK_HD static T store(S x) { return static_cast<T>(code(x)); }

   private:
    static constexpr uint32_t quiet = 0x00400000u;
};

struct F16 {
    using T = uint16_t;
    using S = float;
    CURVK_HD static S load(T x) {
        const uint32_t magnitude = uint32_t{x} & 0x7fffu, sign = (uint32_t{x} & 0x8000u) << 16;
        // Normal: move the exponent from bias 15 to 127. Infinity and NaN: fill the exponent. Subnormal: the significand
        // counts units of 2^-24, which a conversion from integer and a product by a power of two give exactly.
        const uint32_t normal = (magnitude << 13) + (uint32_t{127 - 15} << 23);
        const uint32_t special = (magnitude << 13) | 0x7f800000u;
        const uint32_t tiny = bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
        const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
        const uint32_t large = magnitude >= 0x7c00u ? (special | quiet) : normal;
        return bit_cast<float>(sign | (magnitude < 0x0400u ? tiny : large));
    }
    CURVK_HD static uint32_t code(S x) {
        const uint32_t u = bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
        // Normal: move the exponent and round the 13 lost bits to nearest even; a carry runs into the exponent rightly.
        const uint32_t odd = (magnitude >> 13) & 1u;
        const uint32_t normal = (magnitude - (uint32_t{127 - 15} << 23) + 0xfffu + odd) >> 13;
        // Subnormal result: adding 1/2 leaves units of 2^-24 in the low bits of the sum, rounded by the adder.
        const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
        const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x1ffu) : 0x7c00u;
        const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;  // 2^-14, the smallest normal
        return sign | (magnitude >= 0x477ff000u ? special : finite);  // 65520 rounds to infinity
    }
    // Up or down by uniform bits, so that the mean is x; the upper 13 count, below 2^-14 the upper 14, with which the sum is
    // exact.
    CURVK_HD static uint32_t code(S x, uint32_t random) {
        const uint32_t u = bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
        const uint32_t normal = (magnitude - (uint32_t{127 - 15} << 23) + (random >> 19)) >> 13;
        const float units = bit_cast<float>(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
        const uint32_t tiny = uint32_t(int32_t(units + float(int32_t(random >> 18)) * 0x1p-14f));
        const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x1ffu) : 0x7c00u;
        const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
        return sign | (magnitude >= 0x47800000u ? special : finite);  // 2^16
    }
    CURVK_HD static T store(S x) { return static_cast<T>(code(x)); }
};

}  // namespace
}  // namespace CURVK_LEVEL
