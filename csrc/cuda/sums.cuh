// Sums in the order of the CPU's: chunks of sum_chunk elements, in each 16 lanes that take every 16th element, folded in a
// tree, then the chunks in order. A lane is a thread here, and a block takes a chunk: all its threads make terms, some in
// advance in shared memory, and 16 threads a term add them while the others make the next ones.
#pragma once

#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
namespace {

// The fold of 16 neighbouring threads' values, in the first of them.
__device__ __forceinline__ double fold_threads(double value) {
    for (int half = int(lanes) / 2; half > 0; half /= 2)
        value += __shfl_down_sync(0xffffffffu, value, unsigned(half), int(lanes));
    return value;
}

constexpr int stretch_doubles = 2048;

// partial[k] <- the sum of term k over a chunk's part. f(i, terms) writes those of element i.
template <int terms, class F>
__device__ __forceinline__ void sum_part(const Part& part, double* partial, F f) {
    constexpr int stretch = stretch_doubles / terms;
    __shared__ double made[2][terms][stretch];  // in turn: one is added while the other is made
    const int own = int(threadIdx.x / lanes), lane = int(threadIdx.x % lanes), size = int(part.size);
    double sum = 0;
    for (int base = 0, turn = 0; base < size; base += stretch, turn ^= 1) {
        const int n = size - base < stretch ? size - base : stretch;
        for (int i = int(threadIdx.x); i < n; i += block_threads) {
            double term[terms];
            f(base + i, term);
            for (int k = 0; k < terms; ++k) made[turn][k][i] = term[k];
        }
        __syncthreads();
        if (own < terms)
            for (int i = lane; i < n; i += int(lanes)) sum += made[turn][own][i];
    }
    sum = fold_threads(sum);
    if (lane == 0 && own < terms) partial[own] = sum;
}

// partial[0] <- the sum of one term, partial[1] <- 1 if an element is not finite, else 0. f(i, finite) gives element i's
// term and says whether it is.
template <class F>
__device__ __forceinline__ void sum_flagged(const Part& part, double* partial, F f) {
    bool all = true;
    sum_part<1>(part, partial, [&](int i, double (&term)[1]) {
        bool finite;
        term[0] = f(i, finite);
        all = all && finite;
    });
    const bool bad = __syncthreads_or(!all) != 0;
    if (threadIdx.x == 0) partial[1] = bad ? 1.0 : 0.0;
}

// Adds n numbers, `stride` apart, in their order: one thread adds what all threads of the block fetch. Thread 0 has the sum.
__device__ inline double sum_in_order(const double* from, int64_t n, int64_t stride) {
    __shared__ double some[block_threads];
    double sum = 0;
    for (int64_t first = 0; first < n; first += block_threads) {
        const int64_t length = n - first < block_threads ? n - first : block_threads;
        if (threadIdx.x < length) some[threadIdx.x] = from[(first + threadIdx.x) * stride];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int64_t i = 0; i < length; ++i) sum += some[i];
        __syncthreads();
    }
    return sum;
}

// out[k] <- the chunks' sums of term k in order; a block for each term.
template <int terms>
__global__ void __launch_bounds__(block_threads) add_chunks(const double* partials, int64_t chunks, double, double* out) {
    const double sum = sum_in_order(partials + blockIdx.x, chunks, terms);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// out[0] <- the chunks' sums in order, times scale^2;  out[1] <- 1 if one is flagged, else 0.
__global__ void __launch_bounds__(block_threads) add_flagged(const double* partials, int64_t chunks, double scale, double* out) {
    const double sum = sum_in_order(partials + blockIdx.x, chunks, 2);
    if (threadIdx.x == 0) out[blockIdx.x] = blockIdx.x == 0 ? sum * scale * scale : sum > 0 ? 1.0 : 0.0;
}

// Runs a sum's kernel over chunks, then `finish` over their partial sums.
template <int terms, class Kernel, class... A>
int32_t sum_list(const char* name, Kernel* kernel, void (*finish)(const double*, int64_t, double, double*),
                 std::initializer_list<Column> columns, const int64_t* sizes, int64_t count, double scale, double* out,
                 void* stream, const A&... arguments) {
    const int64_t chunks = count_chunks(sizes, count);
    const Scratch<double> partials(name, terms * chunks, stream);
    if (partials.status) return partials.status;
    const auto some = [&](const Rows& rows, int64_t n, int64_t before) {
        return launch(name, kernel, n, block_threads, stream, rows, partials.data + terms * before, arguments...);
    };
    if (const int32_t status = for_rows(sizes, count, sum_chunk, columns, some)) return status;
    return launch(name, finish, terms, block_threads, stream, partials.data, chunks, scale, out);
}

}  // namespace
}  // namespace CURVK_LEVEL
