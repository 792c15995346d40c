// Sums whose bits depend on the data and its length alone: 16 lanes, whatever the vector width, folded in a fixed tree.
#pragma once

#include <stdint.h>

namespace CURVK_LEVEL {
namespace {

constexpr int64_t lanes = 16;

inline double fold(double* lane) {
    for (int64_t half = lanes / 2; half > 0; half /= 2)
        for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
    return lane[0];
}

inline bool is_finite(double x) { return x - x == 0; }

}  // namespace
}  // namespace CURVK_LEVEL
