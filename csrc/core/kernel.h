// What a kernel file includes. Kernel files are compiled once per SIMD level with CURVK_LEVEL set to that level's
// namespace, and everything they define or instantiate lives there: a weak symbol shared by two levels would let the
// linker hand AVX-512 code to a machine without it. Hence no standard library beyond C's headers, no static
// initialisers, and a check of the objects in CI.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/team.h"

#define CURVK_API  // inside a level's namespace the declarations have C++ linkage

#include "core/half.h"
#include "core/lanes.h"
#include "curvk/base.h"

namespace CURVK_LEVEL {
namespace {

// Elements per thread below which a second thread costs more than it brings (measured with the 28-byte Adam step).
constexpr int64_t elementwise_grain = 16384;

// The only bridge to the team: f(begin, end) on contiguous ranges that cover [0, n).
template <class F>
void for_ranges(int64_t n, int64_t grain, F f) {
    curvk::run_ranges(
        n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); }, &f);
}

// Calls f(row, offset, length) so that all elements of `count` arrays are covered, in one parallel region: the arrays
// are laid end to end and the team takes equal shares, whatever their sizes. A row is split at multiples of `unit` only;
// `grain` counts units.
template <int64_t unit = 1, class F>
void for_list(const int64_t* sizes, int64_t count, int64_t grain, F f) {
    const auto units = [=](int64_t row) { return (sizes[row] + unit - 1) / unit; };
    int64_t total = 0;
    for (int64_t row = 0; row < count; ++row) total += units(row);
    for_ranges(total, grain, [&](int64_t begin, int64_t end) {
        int64_t first = 0;  // where the row starts in the joined index
        for (int64_t row = 0; row < count && first < end; first += units(row++)) {
            const int64_t from = (begin > first ? begin - first : 0) * unit;
            const int64_t last = (end - first) * unit, to = last < sizes[row] ? last : sizes[row];
            if (from < to) f(row, from, to - from);
        }
    });
}

// Sums are formed over chunks of this length, whatever the number of threads, and added in the chunks' order.
constexpr int64_t sum_chunk = 32768;

inline int64_t count_chunks(const int64_t* sizes, int64_t count) {
    int64_t chunks = 0;
    for (int64_t row = 0; row < count; ++row) chunks += (sizes[row] + sum_chunk - 1) / sum_chunk;
    return chunks;
}

// Calls f(chunk, row, offset, length) for every chunk of `count` arrays, `grain` chunks a thread at least.
template <class F>
void for_chunks(const int64_t* sizes, int64_t count, int64_t grain, F f) {
    for_ranges(count_chunks(sizes, count), grain, [&](int64_t begin, int64_t end) {
        int64_t first = 0;  // the row's first chunk
        for (int64_t row = 0; row < count && first < end; ++row) {
            const int64_t own = (sizes[row] + sum_chunk - 1) / sum_chunk;
            for (int64_t c = begin > first ? begin : first; c < end && c < first + own; ++c) {
                const int64_t at = (c - first) * sum_chunk, left = sizes[row] - at;
                f(c, row, at, left < sum_chunk ? left : sum_chunk);
            }
            first += own;
        }
    });
}

constexpr int64_t block = 64;               // elements between two rounds of prefetches
constexpr int64_t prefetch_distance = 2048;  // bytes

// Asks for the lines that the block `prefetch_distance` ahead of each stream will touch. The hardware's prefetchers stop at
// each 4 KiB page; with four streams that costs the Adam step 5 to 10 % from memory, and nothing from cache.
template <class... T>
inline void prefetch_ahead(const T*... streams) {
    const auto ask = [](const void* stream, int64_t bytes) {
        const char* line = static_cast<const char*>(stream) + prefetch_distance;
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(line + b);
    };
    (ask(streams, block * int64_t(sizeof(T))), ...);
}

// The same for the n elements that lie `prefetch_distance` ahead of a stream that is used in blocks of another length.
template <class T>
inline void prefetch_span(const T* stream, int64_t n) {
    const char* line = reinterpret_cast<const char*>(stream) + prefetch_distance;
    for (int64_t b = 0; b < n * int64_t(sizeof(T)); b += 64) __builtin_prefetch(line + b);
}

// Calls f(i, length) for blocks that cover [0, n). The full blocks' length is a constant that f's loop is compiled for.
template <class F>
inline void for_blocks(int64_t n, F f) {
    int64_t i = 0;
    for (; i + block <= n; i += block) f(i, block);
    if (i < n) f(i, n - i);
}

// Lambdas given to for_blocks carry this: both calls must become loops of their own.
#define CURVK_INLINE __attribute__((always_inline))

CURVK_HD inline float magnitude(float x) { return __builtin_fabsf(x); }
CURVK_HD inline double magnitude(double x) { return __builtin_fabs(x); }
// In the type of its argument: sqrt(double) of a float would cost a conversion each way and other bits.
CURVK_HD inline float root(float x) { return sqrtf(x); }
CURVK_HD inline double root(double x) { return sqrt(x); }

// x^n for n >= 0 by squaring, so that C++ and the Python twins agree in the last bit (libm's pow differs by platform).
CURVK_HD inline double power(double x, int64_t n) {
    double result = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) result *= x;
    return result;
}

}  // namespace
}  // namespace CURVK_LEVEL
