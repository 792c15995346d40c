// The noise stream on a device: a thread makes a block of four words. core/philox.h says what becomes of them.
#pragma once

#include "core/philox.h"
#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
namespace {

struct FourWords {
    uint32_t w[4];
};

// Philox4x32-10 of the counter (c0, c1, c2, c3) and the key (k0, k1).
__device__ __forceinline__ FourWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    constexpr uint32_t m0 = 0xd2511f53u, m1 = 0xcd9e8d57u;
    for (int r = 0; r < 10; ++r) {
        const uint64_t first = uint64_t{c0} * m0, second = uint64_t{c2} * m1;  // one instruction gives both halves
        c0 = uint32_t(second >> 32) ^ c1 ^ k0;
        c1 = uint32_t(second);
        c2 = uint32_t(first >> 32) ^ c3 ^ k1;
        c3 = uint32_t(first);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// The words of a block of the stream.
__device__ __forceinline__ FourWords words_of(const Stream& s, uint64_t block) {
    return philox(uint32_t(block), uint32_t(block >> 32), s.tensor, s.draw, uint32_t(s.seed), uint32_t(s.seed >> 32));
}

}  // namespace
}  // namespace CURVK_LEVEL
