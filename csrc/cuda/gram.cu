// Gram products. A block forms tiles of rows of x against 64 packed columns: inner products or squared distances in
// registers, 4 x 8 (float) or 4 x 4 (double) of them a thread, which become kernel values in shared memory and are
// multiplied with W from there, again 4 x 8 or 4 x 4 sums a thread. Nothing of size n m exists.
//
// All sums have an order of their own, whatever the grid: an entry's goes over k; an output's over slices of a tile, the
// tiles of a span, the spans of a chunk and the chunks. That is at most 16 + 16 or 8 + 32 roundings in a span, and
// min(m, 2048) / 256 + m / 2048 of spans and chunks.
#include "core/kernel_functions.h"
#include "cuda/gram_tile.cuh"
#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
namespace {

// ---- packing --------------------------------------------------------------------------------------------------------
// The CPU's sums in its order: a thread for each.

constexpr int center_columns = 32, center_rows = 128;  // that a block holds at a time

template <class T>
__global__ void __launch_bounds__(block_threads)
    gram_center(const T* z, T* center, int64_t m, int64_t d, bool centred) {
    __shared__ T held[center_rows][center_columns];
    constexpr int share = center_rows * center_columns / block_threads, step = block_threads / center_columns;
    const int column = int(threadIdx.x) % center_columns, row = int(threadIdx.x) / center_columns;
    const int64_t k = int64_t{blockIdx.x} * center_columns + column;
    const int64_t rows = centred ? m : 0;
    T next[share];
    const auto fetch = [&](int64_t j0) {
#pragma unroll
        for (int i = 0; i < share; ++i) {
            const int64_t j = j0 + row + i * step;
            next[i] = j < rows && k < d ? z[j * d + k] : T(0);
        }
    };
    double sum = 0;
    int64_t count = 0;
    fetch(0);
    for (int64_t j0 = 0; j0 < rows; j0 += center_rows) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < share; ++i) held[row + i * step][column] = next[i];
        __syncthreads();
        fetch(j0 + center_rows);
        if (row) continue;
        const int64_t left = rows - j0 < center_rows ? rows - j0 : center_rows;
        for (int j = 0; j < left; ++j) {
            const double v = double(held[j][column]);
            const bool finite = is_finite(v);
            sum += finite ? v : 0;
            count += finite;
        }
    }
    if (row || k >= d) return;
    const T mean = T(count > 0 ? sum / double(count) : 0);
    center[k] = is_finite(double(mean)) ? mean : T(0);
}

// A block packs a group of rows, 32 features at a time.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gram_pack(const T* z, T* packed, T* norms, const T* center, int64_t m, int64_t d) {
    constexpr int P = panel<T>, rows = group<T>, features = 32;
    __shared__ T held[rows][features + 1];
    const int t = int(threadIdx.x);
    const int64_t first = int64_t{blockIdx.x} * rows;
    double sum = 0;
    for (int64_t k0 = 0; k0 < d; k0 += features) {
        for (int i = t; i < rows * features; i += block_threads) {
            const int64_t j = first + i / features, k = k0 + i % features;
            held[i / features][i % features] = j < m && k < d ? z[j * d + k] - center[k] : T(0);
        }
        __syncthreads();
        for (int i = t; i < rows * features; i += block_threads) {
            const int half = i / (P * features), k = i / P % features, j = half * P + i % P;
            if (k0 + k < d) packed[((first / P + half) * d + k0 + k) * P + i % P] = held[j][k];
        }
        if (t < rows)
            for (int k = 0; k < features; ++k) sum += double(held[t][k]) * double(held[t][k]);  // zeros beyond d
        __syncthreads();
    }
    if (t < rows) norms[first + t] = T(sum);
}

template <class T>
int32_t pack(const T* z, T* packed, T* norms, T* center, int64_t m, int64_t d, int64_t centred, void* stream) {
    const int32_t status = launch("gram_pack", gram_center<T>, (d + center_columns - 1) / center_columns, block_threads,
                                  stream, z, center, m, d, centred != 0);
    if (status) return status;
    return launch("gram_pack", gram_pack<T>, (m + group<T> - 1) / group<T>, block_threads, stream, z, packed, norms, center,
                  m, d);
}

// ---- products ---------------------------------------------------------------------------------------------------------

constexpr int64_t span = 256, chunk = 2048;  // columns whose products are summed on their own; blocks share out spans
constexpr int64_t spans_of_chunk = chunk / span;
constexpr int64_t most_outputs = 64;                     // of a block; for each further 64 the entries are formed anew
constexpr int64_t enough_blocks = 264;                   // two for each multiprocessor of the largest devices
constexpr int64_t most_partials = int64_t{256} << 20;  // bytes of the spans' sums, where blocks share out columns

template <class T>
struct Product {
    const T* w;
    T *out, *keep, *sums;
    int64_t c;
    int pieces, row_blocks, spans, spans_per_part;
    int log_outputs;  // of a block: 8, 16, 32 or 64 outputs
    bool shared;      // columns among blocks: `sums` (spans, n, c) has all spans' sums, else (n, c) that of a chunk
    bool accumulate;
    int kernel;
    Shape<T> shape;
};

// Kernel values of a thread's own entries. Those of padded columns become 0, for they may be infinite.
template <class T, class F>
__device__ __forceinline__ void apply(Tile<T>& tile, int64_t columns, F f) {
    using Cut = Cut<T>;
#pragma unroll 1
    for (int c = 0; c < Cut::width; ++c) {
        const int column = column_of<T>() + c;
        T* const to = tile.entries + column * Cut::stride + row_of<T>();
        auto values = load<Cut::height>(to, 0);
        f(values.x);
        for (int r = 0; r < Cut::height; ++r) values[r] = column < columns ? values[r] : T(0);
        store_shared(to, 0, values);
    }
}

template <class T>
__device__ __forceinline__ void apply_kernel(Tile<T>& tile, int64_t columns, int kernel, const Shape<T>& o) {
    constexpr int n = Cut<T>::height;
    switch (kernel) {
        case 1: return apply(tile, columns, [&](T* k) { polynomial<T>(k, n, o); });
        case 2: return apply(tile, columns, [&](T* k) { gaussian<T>(k, n, o); });
        case 3: return apply(tile, columns, [&](T* k) { laplacian<T>(k, n, o); });
        case 4: return apply(tile, columns, [&](T* k) { matern32<T>(k, n, o); });
        case 5: return apply(tile, columns, [&](T* k) { matern52<T>(k, n, o); });
        case 6: return apply(tile, columns, [&](T* k) { rational_quadratic<T>(k, n, o); });
        case 7: return apply(tile, columns, [&](T* k) { imq<T>(k, n, o); });
        case 8: return apply(tile, columns, [&](T* k) { exponent<T>(k, n, o); });
        case 10: return apply(tile, columns, [&](T* k) { distance<T>(k, n, o); });
        default: return apply(tile, columns, [&](T* k) { as_it_is<T>(k, n, o); });
    }
}

// keep <- the tile's entries. 8 columns x 4 rows a warp: whole sectors of memory, and no bank conflicts.
template <class T>
__device__ __forceinline__ void write_entries(const Gram<T>& g, const Tile<T>& tile, int64_t row0, int64_t column0, T* keep) {
    using Cut = Cut<T>;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int64_t column = column0 + lane % 8 + 8 * warp;
    if (column >= g.m) return;
    const int64_t left = g.n - row0;
    for (int r = lane / 8; r < Cut::rows && r < left; r += 4)
        keep[(row0 + r) * g.m + column] = tile.entries[(column - column0) * Cut::stride + r];
}

// What a thread sums: `width` outputs from `output` on, over every `groups`th column.
template <class T>
struct Share {
    int log_outputs;
    __device__ explicit Share(int log) : log_outputs(log) {}
    __device__ int outputs() const { return 1 << log_outputs; }
    __device__ int groups() const { return Cut<T>::columns >> log_outputs; }
    __device__ int group() const { return column_of<T>() >> log_outputs; }
    __device__ int output() const { return column_of<T>() & (outputs() - 1); }
};

// total += tile times W, whose rows come to tile.z as many at a time as fit.
template <class T>
__device__ __forceinline__ void add_products(const Product<T>& p, Tile<T>& tile, int64_t column0, int64_t columns,
                                             int64_t output0, T (&total)[Cut<T>::height][Cut<T>::width]) {
    using Cut = Cut<T>;
    const Share<T> own(p.log_outputs);
    const int groups = own.groups(), steps = Cut::columns / groups < Cut::depth ? Cut::columns / groups : Cut::depth;
    const int held = steps * groups;
    for (int j0 = 0; j0 < Cut::columns; j0 += held) {
        __syncthreads();  // the tile is complete, and W's slice before has been read
        for (int i = int(threadIdx.x); i < held << own.log_outputs; i += block_threads) {
            const int j = j0 + (i >> own.log_outputs);
            const int64_t o = output0 + (i & (own.outputs() - 1));
            tile.z[i] = j < columns && o < p.c ? p.w[(column0 + j) * p.c + o] : T(0);
        }
        __syncthreads();
        T sum[Cut::height][Cut::width] = {};
        const T* entry = tile.entries + (j0 + own.group()) * Cut::stride + row_of<T>();
        const T* weight = tile.z + (own.group() << own.log_outputs) + own.output();
#pragma unroll 2
        for (int j = 0; j < steps; ++j, entry += groups * Cut::stride, weight += Cut::columns) {
            const auto k = load<Cut::height>(entry, 0);
            const auto w = load<Cut::width>(weight, 0);
#pragma unroll
            for (int r = 0; r < Cut::height; ++r)
#pragma unroll
                for (int c = 0; c < Cut::width; ++c) sum[r][c] = fused(k[r], w[c], sum[r][c]);
        }
#pragma unroll
        for (int r = 0; r < Cut::height; ++r)
#pragma unroll
            for (int c = 0; c < Cut::width; ++c) total[r][c] += sum[r][c];
    }
}

// What has been summed up to span s, and the sum of a chunk once it is complete. `before` is the chunk's sum of the spans
// before, `out` that of the chunks before.
template <class T>
__device__ __forceinline__ bool add_span(int64_t s, int64_t spans, bool accumulate, T& value, T before, const T* out) {
    if (s % spans_of_chunk) value = before + value;
    if ((s + 1) % spans_of_chunk && s + 1 < spans) return false;
    if (s >= spans_of_chunk || accumulate) value = *out + value;
    return true;
}

// Adds the groups' sums of span s and starts the next span's.
template <class T>
__device__ __forceinline__ void end_span(const Gram<T>& g, const Product<T>& p, Tile<T>& tile, int64_t s, int64_t row0,
                                         int64_t output0, T (&total)[Cut<T>::height][Cut<T>::width]) {
    using Cut = Cut<T>;
    const Share<T> own(p.log_outputs);
    const int size = Cut::rows << own.log_outputs;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < Cut::height; ++r) {
        Pack<T, Cut::width> sums;
#pragma unroll
        for (int c = 0; c < Cut::width; ++c) sums[c] = total[r][c], total[r][c] = 0;
        store_shared(tile.entries, own.group() * size + ((row_of<T>() + r) << own.log_outputs) + own.output(), sums);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = int(threadIdx.x); i < size; i += block_threads) {
        const int64_t row = row0 + (i >> own.log_outputs), o = output0 + (i & (own.outputs() - 1)), at = row * p.c + o;
        if (row >= g.n || o >= p.c) continue;
        T value = tile.entries[i];
#pragma unroll 1
        for (int k = 1; k < own.groups(); ++k) value += tile.entries[k * size + i];
        if (p.shared) p.sums[s * g.n * p.c + at] = value;
        else {
            const T before = s % spans_of_chunk ? p.sums[at] : T(0);
            (add_span(s, p.spans, p.accumulate, value, before, p.out + at) ? p.out : p.sums)[at] = value;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2) gram_product(const Gram<T> g, const Product<T> p) {
    using Cut = Cut<T>;
    __shared__ Tile<T> tile;
    const int row_block = int(blockIdx.x) % p.row_blocks, piece = int(blockIdx.x) / p.row_blocks % p.pieces;
    const int part = int(blockIdx.x) / (p.row_blocks * p.pieces);
    const int64_t row0 = int64_t{row_block} * Cut::rows;
    const int begin = part * p.spans_per_part, end = p.spans - begin < p.spans_per_part ? p.spans : begin + p.spans_per_part;
    T total[Cut::height][Cut::width] = {};
    for (int s = begin; s < end; ++s) {
        for (int k = 0; k < span; k += Cut::columns) {
            const int64_t column = s * span + k, columns = g.m - column;
            if (columns <= 0) break;
            fill(g, tile, row0, column, s == begin && k == 0);
            apply_kernel(tile, columns, p.kernel, p.shape);
            if (p.keep && piece == 0) {
                __syncthreads();
                write_entries(g, tile, row0, column, p.keep);
            }
            if (p.c) add_products(p, tile, column, columns, piece * most_outputs, total);
        }
        if (p.c) end_span(g, p, tile, s, row0, piece * most_outputs, total);
    }
}

// out <- or += the spans' sums.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gram_add_spans(const T* sums, T* out, int64_t size, int64_t spans, bool accumulate) {
    const int64_t at = int64_t{blockIdx.x} * block_threads + threadIdx.x;
    if (at >= size) return;
    T before = 0;
    for (int64_t s = 0; s < spans; ++s) {
        T value = sums[s * size + at];
        if (add_span(s, spans, accumulate, value, before, out + at)) out[at] = value;
        before = value;
    }
}

inline int64_t parts_of(int64_t n, int64_t length) { return (n + length - 1) / length; }

template <class T>
int32_t gram_matvec(const T* x, const T* packed, const T* norms, const T* center, const T* w, T* out, T* keep, int64_t n,
                    int64_t m, int64_t d, int64_t c, int64_t kernel, double scale, double shape, int64_t degree,
                    int64_t accumulate, void* stream) {
    const Gram<T> g = gram_of(x, packed, norms, center, n, m, d, kernel >= first_of_distances);
    Product<T> p = {};
    p.w = w, p.out = out, p.keep = keep;
    p.c = out ? c : 0;
    if (n == 0 || (!keep && p.c == 0)) return CURVK_OK;
    p.log_outputs = p.c <= 8 ? 3 : p.c <= 16 ? 4 : p.c <= 32 ? 5 : 6;
    p.accumulate = accumulate != 0;
    p.kernel = int(kernel);
    p.shape = {bounded<T>(-scale * unit_of(T())), bounded<T>(scale), bounded<T>(shape), degree};
    const int64_t pieces = p.c > most_outputs ? parts_of(p.c, most_outputs) : 1, row_blocks = parts_of(n, Cut<T>::rows);
    const int64_t spans = m > 0 ? parts_of(m, span) : 1, size = n * p.c, blocks = row_blocks * pieces;
    const bool few = blocks < enough_blocks && spans * size * int64_t(sizeof(T)) <= most_partials;
    const int64_t spans_per_part = few ? parts_of(spans, parts_of(enough_blocks, blocks)) : spans;
    const int64_t parts = parts_of(spans, spans_per_part);
    p.pieces = int(pieces), p.row_blocks = int(row_blocks), p.spans = int(spans), p.spans_per_part = int(spans_per_part);
    p.shared = parts > 1;
    const Scratch<T> sums("gram_matvec", p.shared ? spans * size : spans > 1 ? size : 0, stream);
    if (sums.status) return sums.status;
    p.sums = sums.data;
    const int32_t status = launch("gram_matvec", gram_product<T>, blocks * parts, block_threads, stream, g, p);
    if (status || !p.shared) return status;
    return launch("gram_matvec", gram_add_spans<T>, parts_of(size, block_threads), block_threads, stream, sums.data, out, size,
                  spans, p.accumulate);
}

// ---- order statistics -------------------------------------------------------------------------------------------------

// A row's 64 entries of a tile are shared by the 2 or 4 threads of a row; a find's place is the number of finds before it.
template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    gram_sift(const Gram<T> g, T* found, int64_t* counts, int64_t first, T low, T high, int64_t capacity) {
    using Cut = Cut<T>;
    constexpr int shares = block_threads / Cut::rows, width = Cut::columns / shares;
    __shared__ Tile<T> tile;
    __shared__ int64_t numbers[block_threads];
    const int t = int(threadIdx.x), row = t % Cut::rows, share = t / Cut::rows;
    const int64_t row0 = int64_t{blockIdx.x} * Cut::rows, i = row0 + row;
    int64_t count[4] = {}, finds = 0;
    const int64_t start = (first + row0 + 1) / Cut::columns * Cut::columns;
    for (int64_t column = start; column < g.m; column += Cut::columns) {
        fill(g, tile, row0, column, column == start);
        __syncthreads();
        const int64_t own = column + share * width, after = first + i + 1 - own, left = i < g.n ? g.m - own : 0;
        const int from = int(after < 0 ? 0 : after < width ? after : width), to = int(left < width ? left : width);
        const T* const q = tile.entries + share * width * Cut::stride + row;
        int below = 0, not_above = 0, under = 0, at_most = 0, inside = 0;
        for (int j = from; j < to; ++j) {
            const T value = q[j * Cut::stride];
            below += value < low;
            not_above += value <= low;
            under += value < high;
            at_most += value <= high;
            inside += (value > low) & (value < high);
        }
        count[0] += below, count[1] += not_above, count[2] += under, count[3] += at_most;
        numbers[t] = inside;
        __syncthreads();
        int64_t at = finds;
        for (int k = 0; k < shares; ++k) {
            if (k == share) at = finds;
            finds += numbers[k * Cut::rows + row];
        }
        if (inside == 0) continue;
        for (int j = from; j < to && at < capacity; ++j) {
            const T value = q[j * Cut::stride];
            if (value > low && value < high) found[i * capacity + at++] = value;
        }
    }
    for (int k = 0; k < 4; ++k) {
        __syncthreads();
        numbers[t] = count[k];
        __syncthreads();
        if (share || i >= g.n) continue;
        int64_t sum = 0;
        for (int other = 0; other < shares; ++other) sum += numbers[other * Cut::rows + row];
        counts[4 * i + k] = sum;
    }
}

template <class T>
int32_t gram_select(const T* x, const T* packed, const T* norms, const T* center, T* found, int64_t* counts, int64_t n,
                    int64_t m, int64_t d, int64_t first, double low, double high, int64_t capacity, void* stream) {
    const Gram<T> g = gram_of(x, packed, norms, center, n, m, d, true);
    return launch("gram_select", gram_sift<T>, parts_of(n, Cut<T>::rows), block_threads, stream, g, found, counts, first,
                  T(low), T(high), capacity);
}

}  // namespace

#define GRAM(FMT, T)                                                                                                          \
    int32_t curvk_gram_pack_##FMT(const T* z, T* packed, T* norms, T* center, int64_t m, int64_t d, int64_t centred,          \
                                  void* stream) {                                                                             \
        return pack(z, packed, norms, center, m, d, centred, stream);                                                         \
    }                                                                                                                         \
    int32_t curvk_gram_matvec_##FMT(const T* x, const T* packed, const T* norms, const T* center, const T* w, T* out,         \
                                    T* keep, int64_t n, int64_t m, int64_t d, int64_t c, int64_t kernel, double scale,        \
                                    double shape, int64_t degree, int64_t accumulate, void* stream) {                         \
        return gram_matvec(x, packed, norms, center, w, out, keep, n, m, d, c, kernel, scale, shape, degree, accumulate,      \
                           stream);                                                                                           \
    }                                                                                                                         \
    int32_t curvk_gram_select_##FMT(const T* x, const T* packed, const T* norms, const T* center, T* found, int64_t* counts,  \
                                    int64_t n, int64_t m, int64_t d, int64_t first, double low, double high,                  \
                                    int64_t capacity, void* stream) {                                                         \
        return gram_select(x, packed, norms, center, found, counts, n, m, d, first, low, high, capacity, stream);             \
    }
GRAM(f32, float)
GRAM(f64, double)

}  // namespace CURVK_LEVEL
