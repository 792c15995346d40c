// Sums whose bits depend on the data and its length alone: 16 lanes, whatever the vector width, folded in a fixed tree.
#pragma once

#include <stdint.h>

namespace CURVK_LEVEL {
namespace {

constexpr int64_t lanes = 16;

struct Lanes {
    double lane[lanes] = {};

    double fold() const {
        double sum[lanes];
        for (int k = 0; k < lanes; ++k) sum[k] = lane[k];
        for (int half = lanes / 2; half > 0; half /= 2)
            for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
        return sum[0];
    }
};

}  // namespace
}  // namespace CURVK_LEVEL
