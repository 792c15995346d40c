#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/half.h"
namespace {

template <class Format>
void widen(const uint16_t* __restrict x, float* __restrict out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = Format::load(x[i]);
}

template <class Format>
void narrow(const float* __restrict x, uint16_t* __restrict out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = Format::store(x[i]);
}

}  // namespace

#define HALF(FMT, Format)                                                                                         \
    int32_t curvk_to_float32_##FMT(const uint16_t* x, float* out, int64_t n) {                                         \
        for_ranges(n, elementwise_grain, [=](int64_t i, int64_t end) { widen<Format>(x + i, out + i, end - i); });  \
        return 0;                                                                                                 \
    }                                                                                                             \
    int32_t curvk_from_float32_##FMT(const float* x, uint16_t* out, int64_t n) {                                        \
        for_ranges(n, elementwise_grain, [=](int64_t i, int64_t end) { narrow<Format>(x + i, out + i, end - i); }); \
        return 0;                                                                                                 \
    }
HALF(bf16, BF16)
HALF(f16, F16)

}  // namespace CURVK_LEVEL
