// Tiles of inner products and squared distances of rows of x and packed columns: what gram.cu's kernels share. The layout
// of `packed`, the limits and the sums' order are those of kernels/gram.cpp.
//
// Shared memory per k and thread: 12 numbers (float) or 8 (double) are loaded for 32 or 16 fused multiplications.
#pragma once

#include "core/kernel_functions.h"
#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
namespace {

template <class T>
constexpr int panel = 64 / int(sizeof(T));  // columns that lie side by side in `packed`
template <class T>
constexpr int group = 2 * panel<T>;         // columns are padded to a multiple of it
constexpr int64_t difference_limit = 12;    // up to this d distances are sums of squared differences
template <class T>
constexpr T near = T(1) / T(1024);          // up to this share of the squared norms q is formed from differences

// V neighbours in shared memory, by a plain assignment: `store` names an instruction that writes to global memory.
template <int V, class T>
__device__ __forceinline__ void store_shared(T* p, int i, const Pack<T, V>& value) {
    *reinterpret_cast<Pack<T, V>*>(p + i) = value;
}

// How a block's 256 threads cut a tile.
template <class T>
struct Cut {
    static constexpr int pack = 16 / int(sizeof(T));                     // elements of an access to memory
    static constexpr int height = 4, width = sizeof(T) == 4 ? 8 : 4;     // rows and columns of a thread
    static constexpr int columns = 64, rows = block_threads * width * height / columns;  // 128 or 64 rows
    static constexpr int depth = 64 / int(sizeof(T));                    // of a slice of x and z
    static constexpr int stride = rows + pack;                           // of k or a column, against bank conflicts
};

// 46 or 42 KiB: two blocks a multiprocessor.
template <class T>
struct Tile {
    alignas(16) T entries[Cut<T>::columns * Cut<T>::stride];  // of row r and column j at [j][r]
    alignas(16) T x[Cut<T>::depth * Cut<T>::stride];
    alignas(16) T z[Cut<T>::depth * Cut<T>::columns];  // and of W
    T norms[Cut<T>::rows];
};

// The first of a thread's rows and columns. A warp has 8 x 4 threads of them.
template <class T>
__device__ __forceinline__ int row_of() {
    const int t = int(threadIdx.x);
    return Cut<T>::height * (t % 8 + t / 32 % (Cut<T>::rows / 32) * 8);
}
template <class T>
__device__ __forceinline__ int column_of() {
    const int t = int(threadIdx.x);
    return Cut<T>::width * (t / 8 % 4 + t / 32 / (Cut<T>::rows / 32) * 4);
}

template <class T>
struct Gram {
    const T *x, *packed, *norms, *center;
    int64_t n, m, d, padded;
    bool distances, differences;
    bool packs_of_x, packs_of_z;  // can be read 16 bytes at a time
};

template <class T>
Gram<T> gram_of(const T* x, const T* packed, const T* norms, const T* center, int64_t n, int64_t m, int64_t d, bool distances) {
    const auto aligned = [](const T* p) { return reinterpret_cast<uint64_t>(p) % 16 == 0; };
    return {x, packed, norms, center, n, m, d, (m + group<T> - 1) / group<T> * group<T>, distances, d <= difference_limit,
            d % Cut<T>::pack == 0 && aligned(x), aligned(packed)};
}

// A thread's share of `depth` features of a tile, on its way from memory to shared memory. Of x it has packs of one row,
// where four packs make 64 bytes and a warp's stores meet no bank twice; or, where x cannot be read so, single elements of
// one feature. Bounds are counted from the thread's own place: comparisons with constants, which take no registers.
template <class T>
struct Slice {
    using Cut = CURVK_LEVEL::Cut<T>;
    static constexpr int share = Cut::rows * Cut::depth / block_threads, P = panel<T>;
    static constexpr int pack_step = block_threads / Cut::rows * Cut::pack;  // features between a thread's packs
    static constexpr int row_step = block_threads / Cut::depth;              // rows between its single elements
    static constexpr int across = Cut::columns / Cut::pack;                  // threads for a feature of z
    const T *from_x, *from_z;
    int k_of_x, k_of_z, rows, place;
    bool padded;  // z has a column here
    T x[share];
    Pack<T, Cut::pack> z;

    __device__ __forceinline__ Slice(const Gram<T>& g, int64_t row0, int64_t column0) {
        const int t = int(threadIdx.x), row = g.packs_of_x ? t % 16 + t / 32 % (Cut::rows / 16) * 16 : t / Cut::depth;
        const int64_t j = column0 + t % across * Cut::pack;
        k_of_x = g.packs_of_x ? (t / 16 % 2 + t / (2 * Cut::rows) * 2) * Cut::pack : t % Cut::depth;
        k_of_z = t / across;
        from_x = g.x + (row0 + row) * g.d + k_of_x;
        from_z = g.packed + (j / P * g.d + k_of_z) * P + j % P;
        rows = int(g.n - row0 < Cut::rows ? g.n - row0 : Cut::rows) - row;
        padded = j < g.padded;
        place = k_of_x * Cut::stride + row;
    }

    static __device__ __forceinline__ int depth_of(const Gram<T>& g, int64_t k0) {
        return int(g.d - k0 < Cut::depth ? g.d - k0 : Cut::depth);
    }

    __device__ __forceinline__ void fetch(const Gram<T>& g, int64_t k0) {
        const int depth = depth_of(g, k0), features = depth - k_of_x;
        if (g.packs_of_x) {
#pragma unroll
            for (int i = 0; i < share / Cut::pack; ++i) {
                Pack<T, Cut::pack> values = {};
                if (rows > 0 && features > i * pack_step) values = load<Cut::pack>(from_x, i * pack_step);
#pragma unroll
                for (int e = 0; e < Cut::pack; ++e) x[i * Cut::pack + e] = values[e];
            }
        } else {
            const T* from = from_x;
#pragma unroll
            for (int i = 0; i < share; ++i, from += row_step * g.d) x[i] = rows > i * row_step && features > 0 ? *from : T(0);
        }
        z = {};
        if (k_of_z < depth && padded) {
            if (g.packs_of_z) z = load<Cut::pack>(from_z, 0);
            else
                for (int e = 0; e < Cut::pack; ++e) z[e] = from_z[e];
        }
        from_x += Cut::depth, from_z += Cut::depth * P;
    }

    // x is centred here: subtracting where it is fetched would wait for it.
    __device__ __forceinline__ void put(const Gram<T>& g, int64_t k0, Tile<T>& tile) const {
        const int features = depth_of(g, k0) - k_of_x;
        const T* const center = g.center + k0 + k_of_x;
        const auto mean = [&](int step) { return step < features ? center[step] : T(0); };
        if (g.packs_of_x) {
#pragma unroll
            for (int i = 0; i < share; ++i) {
                const int step = i / Cut::pack * pack_step + i % Cut::pack;
                tile.x[place + step * Cut::stride] = x[i] - mean(step);
            }
        } else {
            const T same = mean(0);
#pragma unroll
            for (int i = 0; i < share; ++i) tile.x[place + i * row_step] = x[i] - same;
        }
        store_shared(tile.z, int(threadIdx.x) * Cut::pack, z);
    }
};

// sum[r][c] <- sum over k of x z, or of (x - z)^2. `with_norms`: tile.norms <- sums of x^2.
template <bool differences, class T>
__device__ __forceinline__ void inner(const Gram<T>& g, Tile<T>& tile, int64_t row0, int64_t column0, bool with_norms,
                                      T (&sum)[Cut<T>::height][Cut<T>::width]) {
    using Cut = Cut<T>;
#pragma unroll
    for (int r = 0; r < Cut::height; ++r)
#pragma unroll
        for (int c = 0; c < Cut::width; ++c) sum[r][c] = 0;
    double norm = 0;
    Slice<T> slice(g, row0, column0);
    slice.fetch(g, 0);
    for (int64_t k0 = 0; k0 < g.d; k0 += Cut::depth) {
        __syncthreads();  // the slice before has been read
        slice.put(g, k0, tile);
        __syncthreads();
        if (k0 + Cut::depth < g.d) slice.fetch(g, k0 + Cut::depth);
        const int depth = Slice<T>::depth_of(g, k0);
        if (with_norms && threadIdx.x < Cut::rows)
            for (int k = 0; k < depth; ++k) {
                const double e = double(tile.x[k * Cut::stride + threadIdx.x]);
                norm += e * e;
            }
        // Deeper unrolling takes the registers of what is kept from tile to tile.
        const T *const left = tile.x + row_of<T>(), *const right = tile.z + column_of<T>();
#pragma unroll (differences ? 1 : 2)
        for (int k = 0; k < depth; ++k) {
            const auto a = load<Cut::height>(left, k * Cut::stride);
            const auto b = load<Cut::width>(right, k * Cut::columns);
#pragma unroll
            for (int r = 0; r < Cut::height; ++r)
#pragma unroll
                for (int c = 0; c < Cut::width; ++c) {
                    if (differences) {
                        const T e = a[r] - b[c];
                        sum[r][c] = fused(e, e, sum[r][c]);
                    } else {
                        sum[r][c] = fused(a[r], b[c], sum[r][c]);
                    }
                }
        }
    }
    if (!with_norms) return;
    if (threadIdx.x < Cut::rows) tile.norms[threadIdx.x] = T(norm);
    __syncthreads();
}

// tile.entries <- s or q; a thread may read its own entries at once, those of others after a barrier. `first`: the norms
// of the tile's rows are not known yet.
//
// Distances are |x|^2 + |z|^2 - 2 s, and where one of the tile cancels its squared differences are formed for all: an
// entry's bits do not depend on the others, and no thread waits for another's loop over d. NaN fails the comparison and
// goes there too: infinite rows are at infinite distance, as they are by differences. So does an infinite sum of the
// squared norms, for q may be finite.
template <class T>
__device__ __forceinline__ void fill(const Gram<T>& g, Tile<T>& tile, int64_t row0, int64_t column0, bool first) {
    using Cut = Cut<T>;
    const int row = row_of<T>(), column = column_of<T>();
    T* const to = tile.entries + column * Cut::stride + row;
    T sum[Cut::height][Cut::width];
    const auto put = [&] {
#pragma unroll
        for (int c = 0; c < Cut::width; ++c) {
            Pack<T, Cut::height> entries;
#pragma unroll
            for (int r = 0; r < Cut::height; ++r) entries[r] = sum[r][c];
            store_shared(to, c * Cut::stride, entries);
        }
    };
    uint32_t close = ~0u;  // the entries that squared differences are for
    __syncthreads();       // the tile before has been used
    if (!g.distances || !g.differences) {
        inner<false>(g, tile, row0, column0, g.distances && first, sum);
        if (!g.distances) return put();
        close = 0;
        const auto x_norms = load<Cut::height>(tile.norms, row);
        const T* const z_norms = g.norms + column0 + column;
        const int64_t rows = g.n - row0 - row, columns = g.m - column0 - column;
#pragma unroll
        for (int c = 0; c < Cut::width; ++c) {
            const T z_norm = c < columns ? z_norms[c] : T(0);
#pragma unroll
            for (int r = 0; r < Cut::height; ++r) {
                const T norm = x_norms[r] + z_norm;
                sum[r][c] = fused(T(-2), sum[r][c], norm);
                if (!(sum[r][c] > near<T> * norm) && c < columns && r < rows) close |= 1u << (c * Cut::height + r);
            }
        }
        put();
        if (!__syncthreads_or(close != 0)) return;
    }
    inner<true>(g, tile, row0, column0, false, sum);
    if (close == ~0u) return put();
#pragma unroll
    for (int c = 0; c < Cut::width; ++c)
#pragma unroll
        for (int r = 0; r < Cut::height; ++r)
            if (close >> (c * Cut::height + r) & 1) to[c * Cut::stride + r] = sum[r][c];
}

}  // namespace
}  // namespace CURVK_LEVEL
