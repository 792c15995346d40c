// The block copier: runs an elementwise kernel, which knows contiguous arrays only, on any layout.
#pragma once

#include <cstdint>
#include <vector>

namespace curvk {

constexpr int64_t block_length = 1024;  // five arrays of 8-byte elements stay in a 48 KiB L1 cache

struct StridedArray {
    char* data;
    int64_t itemsize;
    bool written;
    std::vector<int64_t> strides;  // bytes per step of each axis
    int64_t per = 0;               // contiguous with one element for `per` of the others, which divides block_length; or 0
};

// f(context, blocks, start, n): the kernel on n gathered elements of each array, from the logical index `start`; returns
// its status.
using BlockFunction = int32_t (*)(void* context, void* const* blocks, int64_t start, int64_t n);

// Gathers blocks that fit the L1 cache, calls f, scatters what is written; f gets the place itself in an array `per`. The
// other arrays share `shape`, of rank 1 or more.
// A failing status stops the run; the kernel checks its scalars before it writes, so nothing is scattered then.
__attribute__((visibility("default"))) int32_t run_strided(const std::vector<int64_t>& shape,
                                                           const std::vector<StridedArray>& arrays, BlockFunction f,
                                                           void* context);

}  // namespace curvk
