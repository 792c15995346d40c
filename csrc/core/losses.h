// Losses of a prediction f for a target y, as online.h and budget.h number them.
#pragma once

#include "core/lanes.h"

namespace CURVK_LEVEL {
namespace {

// The derivative in f; the last is the perceptron's.
inline double slope(int64_t loss, double y, double f) {
    const double margin = 1 - y * f;
    switch (loss) {
        case 0: return margin > 0 ? -2 * y * margin : 0;
        case 1: return margin > 0 ? -y : 0;
        case 2: return -y / (1 + exp_of(y * f));
        case 3: return 2 * (f - y);
        default: return y * f <= 0 ? -y : 0;
    }
}

}  // namespace
}  // namespace CURVK_LEVEL
