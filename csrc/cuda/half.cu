#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
#include "curvk/half.h"
namespace {

// Six bytes an element.
template <class Format>
__global__ void __launch_bounds__(block_threads) to_float32(const uint16_t* x, float* out, int64_t n) {
    const int64_t begin = blockIdx.x * chunk_elements, left = n - begin;
    x += begin;
    out += begin;
    for_packs<8>(left < chunk_elements ? left : chunk_elements, packs_aligned<8>(x, out), [=](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        const auto codes = load<V>(x, i);
        Pack<float, V> values;
        for (int k = 0; k < V; ++k) values[k] = Format::load(codes[k]);
        store<V>(out, i, values);
    });
}

template <class Format>
__global__ void __launch_bounds__(block_threads) from_float32(const float* x, uint16_t* out, int64_t n) {
    const int64_t begin = blockIdx.x * chunk_elements, left = n - begin;
    x += begin;
    out += begin;
    for_packs<8>(left < chunk_elements ? left : chunk_elements, packs_aligned<8>(x, out), [=](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        const auto values = load<V>(x, i);
        Pack<uint16_t, V> codes;
        for (int k = 0; k < V; ++k) codes[k] = Format::store(values[k]);
        store<V>(out, i, codes);
    });
}

int64_t blocks_of(int64_t n) { return (n + chunk_elements - 1) / chunk_elements; }

}  // namespace

#define HALF(FMT, Format)                                                                                                     \
    int32_t curvk_to_float32_##FMT(const uint16_t* x, float* out, int64_t n, void* stream) {                                  \
        return launch("to_float32", to_float32<Format>, blocks_of(n), block_threads, stream, x, out, n);                      \
    }                                                                                                                         \
    int32_t curvk_from_float32_##FMT(const float* x, uint16_t* out, int64_t n, void* stream) {                                \
        return launch("from_float32", from_float32<Format>, blocks_of(n), block_threads, stream, x, out, n);                  \
    }
HALF(bf16, BF16)
HALF(f16, F16)

}  // namespace CURVK_LEVEL
