#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/vmath.h"
namespace {

template <class T>
void exp_each(const T* __restrict x, T* __restrict out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = exp_of(x[i]);
}

template <class T>
void log_each(const T* __restrict x, T* __restrict out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = log_of(x[i]);
}

}  // namespace

#define VMATH(OP, FMT, T)                                                                                        \
    int32_t curvk_##OP##_list_##FMT(CURVK_VMATH_LIST(T)) {                                                       \
        for_list(sizes, count, elementwise_grain,                                                                \
                 [=](int64_t row, int64_t i, int64_t n) { OP##_each(x[row] + i, out[row] + i, n); });            \
        return 0;                                                                                                \
    }
VMATH(exp, f32, float)
VMATH(exp, f64, double)
VMATH(log, f32, float)
VMATH(log, f64, double)

}  // namespace CURVK_LEVEL
