// Bytes an element: fill writes it, axpy_seeds and noise_grid read and write it, dot_seeds reads it once for up to eight
// draws. The arithmetic and its order are those of kernels/noise.cpp and core/philox.h, whose loops fill arrays; here a
// thread makes the words of a Philox block and takes the elements that they give.
#include "cuda/philox.cuh"
#include "cuda/sums.cuh"

namespace CURVK_LEVEL {
#include "curvk/noise.h"
namespace {

// Calls f with the distribution's type: the one place that looks at `dist`.
template <class F>
int32_t with_distribution(int64_t dist, F f) {
    if (dist == 0) return f(Normal{});
    if (dist == 1) return f(NormalFast{});
    if (dist == 2) return f(Rademacher{});
    return f(Uniform{});
}

// ---- a thread's elements ------------------------------------------------------------------------------------------------

// `runs` runs of `width` neighbours, `stride` apart. `items` threads' elements fill a tile of `span`.
template <int width_, int runs_, int stride_, int items_>
struct Layout {
    static constexpr int width = width_, runs = runs_, stride = stride_, items = items_;
    static constexpr int elements = width * runs, span = items * elements;
    // The place of item q's element e, counted from item 0's first.
    __device__ __forceinline__ static int at(int q, int e) {
        return int(unsigned(q) / items * span + unsigned(q) % items * width) + e / width * stride + e % width;
    }
};

// A distribution on a device: the elements that a block of words gives, an item of the layout, and their values.
template <class D>
struct Made;

template <>
struct Made<Normal> : Layout<2, 2, 16, tile_blocks> {
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t block, float* z) {
        const FourWords w = words_of(stream, block);
        for (int h = 0; h < 2; ++h) {
            const Pair pair = box_muller<Fine>(float(w.w[h]) * 0x1p-32f + 0x1p-33f, w.w[2 + h]);
            z[h] = pair.first;
            z[2 + h] = pair.second;
        }
    }
};

template <>
struct Made<NormalFast> : Layout<2, 4, 16, tile_blocks> {
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t block, float* z) {
        const FourWords w = words_of(stream, block);
        for (int j = 0; j < 4; ++j) {
            const float u = float(int32_t(w.w[j] & 0xffffu)) * 0x1p-16f + 0x1p-17f;
            const Pair pair = box_muller<Coarse>(u, w.w[j] & 0xffff0000u);
            z[j] = pair.first;
            z[4 + j] = pair.second;
        }
    }
};

template <>
struct Made<Uniform> : Layout<2, 2, 16, tile_blocks> {
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t block, float* z) {
        const FourWords w = words_of(stream, block);
        for (int j = 0; j < 4; ++j) z[j] = float(int32_t(w.w[j] >> 8)) * 0x1p-24f;
    }
};

// Signs in the layout of uniforms, for noise_grid: the eight items of 32 elements each make the word that serves them all,
// as many words as uniforms take.
template <>
struct Made<Rademacher> : Layout<2, 2, 16, tile_blocks> {
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t block, float* z) {
        const uint64_t number = block / items;  // of the word in the stream's order
        const unsigned m = unsigned(number % tile_words);
        const FourWords w = words_of(stream, number / tile_words * tile_blocks + m % 16 / 2);
        const uint32_t even = m < 16 ? w.w[0] : w.w[2], odd = m < 16 ? w.w[1] : w.w[3];
        const uint32_t word = (m % 2 ? odd : even) >> (2 * unsigned(block % items));
        for (int e = 0; e < elements; ++e) z[e] = word & 1u << (e / width * stride + e % width) ? -1.0f : 1.0f;
    }
};

// A part of a row in a layout: `skip` elements of its first tile, number `tile` of the stream, lie before it.
struct Place {
    Stream stream;
    uint64_t tile;
    int skip, size;
};

enum NoiseColumn : int { from_column, to_column, tensor_column, offset_column };

template <class L>
__device__ __forceinline__ Place place_of(const Rows& rows, const Part& part, uint64_t seed, uint32_t draw) {
    const uint64_t first = rows.at(offset_column, part.row) + uint64_t(part.begin);
    return {{seed, uint32_t(rows.at(tensor_column, part.row)), draw}, first / L::span, int(first % L::span), int(part.size)};
}

template <class L>
__device__ __forceinline__ int items_of(const Place& at) {
    return (at.skip + at.size + L::span - 1) / L::span * L::items;
}

// An item's elements in memory, of which those of [0, size) exist.
template <class L, class T>
__device__ __forceinline__ void load_item(const T* p, int q, int skip, int size, bool aligned, Pack<T, L::width>* x) {
#pragma unroll
    for (int run = 0; run < L::runs; ++run) {
        const int i = L::at(q, run * L::width) - skip;
        if (aligned && i >= 0 && i + L::width <= size) {
            x[run] = load<L::width>(p, i);
            continue;
        }
#pragma unroll
        for (int k = 0; k < L::width; ++k)
            if (i + k >= 0 && i + k < size) x[run][k] = p[i + k];
    }
}

template <class L, class T>
__device__ __forceinline__ void store_item(T* p, int q, int skip, int size, bool aligned, const Pack<T, L::width>* x) {
#pragma unroll
    for (int run = 0; run < L::runs; ++run) {
        const int i = L::at(q, run * L::width) - skip;
        if (aligned && i >= 0 && i + L::width <= size) {
            store(p, i, x[run]);
            continue;
        }
#pragma unroll
        for (int k = 0; k < L::width; ++k)
            if (i + k >= 0 && i + k < size) p[i + k] = x[run][k];
    }
}

// ---- draws and their coefficients ---------------------------------------------------------------------------------------

template <class S>
struct Term {
    S coef;
    uint32_t draw;
};

// A sum's terms: a few by value, many in device memory.
template <class S>
struct Terms {
    static constexpr int64_t few = 64;
    int64_t k;
    const Term<S>* many;
    Term<S> term[few];

    __device__ __forceinline__ Term<S> operator[](int64_t j) const { return many ? many[j] : term[j]; }
};

// Terms on their way to device memory as arguments of launches: unlike a copy's source, they need not outlive the call,
// and a graph keeps them.
template <class S>
struct Parcel {
    static constexpr int64_t most = 1900;
    Term<S> term[most];
};

template <class S>
__global__ void unpack(CURVK_GRID_CONSTANT(Parcel<S>) parcel, Term<S>* to, int64_t n) {
    for (int64_t j = threadIdx.x; j < n; j += block_threads) to[j] = parcel.term[j];
}

// Calls f with the terms; without coefficients they are 1.
template <class S, class F>
int32_t with_terms(const char* name, const int64_t* draws, const double* coefs, int64_t k, void* stream, F f) {
    const auto term = [=](int64_t j) { return Term<S>{coefs ? S(coefs[j]) : S(1), uint32_t(draws[j])}; };
    Terms<S> terms{k, nullptr, {}};
    if (k <= Terms<S>::few) {
        for (int64_t j = 0; j < k; ++j) terms.term[j] = term(j);
        return f(terms);
    }
    const Scratch<Term<S>> many(name, k, stream);
    if (many.status) return many.status;
    Parcel<S> parcel;
    for (int64_t first = 0; first < k; first += Parcel<S>::most) {
        const int64_t n = k - first < Parcel<S>::most ? k - first : Parcel<S>::most;
        for (int64_t j = 0; j < n; ++j) parcel.term[j] = term(first + j);
        const int32_t status = launch(name, unpack<S>, 1, block_threads, stream, parcel, many.data + first, n);
        if (status) return status;
    }
    terms.many = many.data;
    return f(terms);
}

// ---- sums of draws ------------------------------------------------------------------------------------------------------
// Of each four draws in order, then of these in order. Both sums begin with -0.0, which changes nothing, not even a zero's
// sign: so a single draw is the product itself, and a fill is the sum of one draw with coefficient 1.

template <class D, class S>
struct Sum : Made<D> {
    using M = Made<D>;

    __device__ __forceinline__ static int count_items(const Place& at) { return items_of<M>(at); }

    __device__ __forceinline__ static void make(const Place& at, int q, const Terms<S>& terms, S* sum) {
        Stream stream = at.stream;
        S four[M::elements];
        for (int e = 0; e < M::elements; ++e) sum[e] = four[e] = S(-0.0);
#pragma unroll 1
        for (int64_t j = 0; j < terms.k; ++j) {
            const Term<S> term = terms[j];
            float z[M::elements];
            stream.draw = term.draw;
            M::make(stream, at.tile * M::items + uint64_t(q), z);
            for (int e = 0; e < M::elements; ++e) four[e] = four[e] + term.coef * S(z[e]);
            if (j % 4 != 3 && j + 1 != terms.k) continue;
            for (int e = 0; e < M::elements; ++e) {
                sum[e] = sum[e] + four[e];
                four[e] = S(-0.0);
            }
        }
    }
};

// A block of a tile's words, in their places.
__device__ __forceinline__ void put_words(const Stream& stream, uint64_t block, uint32_t* words) {
    const FourWords w = words_of(stream, block);
    for (int j = 0; j < 4; ++j) words[block % tile_blocks * 2 + j / 2 * 16 + j % 2] = w.w[j];
}

// Signs: the words of up to four draws, made once, lie in shared memory, from which a thread takes four neighbours' bits:
// three operations for an element and draw. Memory alone decides what is aligned.
template <class S>
struct Sum<Rademacher, S> : Layout<4, 4, 1024, block_threads> {
    static constexpr int tile = 1024, tiles = int(chunk_elements) / tile + 1;  // one more: a chunk begins within a tile
    static constexpr int blocks = tiles * int(tile_blocks), words = tiles * 32 + 1;
    static_assert(Sum::span == chunk_elements, "an item a thread: all threads of a block meet");
    static_assert(4 * blocks <= block_threads, "four draws' words take a block a thread");

    __device__ __forceinline__ static int count_items(const Place&) { return block_threads; }

    __device__ __forceinline__ static void make(const Place& at, int q, const Terms<S>& terms, S* sum) {
        __shared__ uint32_t word[2][4][words];  // in turn: the next four's words do not wait for the last four's readers
        const uint64_t first = at.tile * Sum::span + uint64_t(at.skip);
        const int begin = int(first % tile) + Sum::at(q, 0), shift = begin % 32;
        for (int e = 0; e < Sum::elements; ++e) sum[e] = S(-0.0);
        for (int64_t j = 0; j < terms.k; j += 4) {
            uint32_t(*const four)[words] = word[j / 4 % 2];
            const int count = terms.k - j < 4 ? int(terms.k - j) : 4, own = int(threadIdx.x) / blocks;
            if (own < count) {
                const unsigned block = threadIdx.x % blocks;
                const Stream stream{at.stream.seed, at.stream.tensor, terms[j + own].draw};
                put_words(stream, first / tile * tile_blocks + block, four[own] + block / tile_blocks * 32);
            }
            __syncthreads();
            S coef[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) coef[c] = c < count ? terms[j + c].coef : S(0);
#pragma unroll
            for (int run = 0; run < Sum::runs; ++run) {
                S part[4] = {S(-0.0), S(-0.0), S(-0.0), S(-0.0)};
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    if (c == count) break;
                    const uint32_t* const from = four[c] + begin / 32 + run * (Sum::stride / 32);
                    const uint32_t bits = uint32_t(((uint64_t{from[1]} << 32) | from[0]) >> shift);
                    for (int e = 0; e < 4; ++e) part[e] = part[e] + (bits & 1u << e ? -coef[c] : coef[c]);
                }
                for (int e = 0; e < 4; ++e) sum[4 * run + e] = sum[4 * run + e] + part[e];
            }
        }
    }
};

// out <- sum, or if moves, out <- shrink p + sum where |p| <= threshold and p elsewhere.
template <class Format, class D, bool moves, class T = typename Format::T, class S = typename Format::S>
__global__ void __launch_bounds__(block_threads)
    sum_draws(CURVK_GRID_CONSTANT(Rows) rows, CURVK_GRID_CONSTANT(Terms<S>) terms, uint64_t seed, S shrink, S threshold) {
    using L = Sum<D, S>;
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    const T* const p = rows.address<const T>(from_column, part.row, part.begin);
    T* const out = rows.address<T>(to_column, part.row, part.begin);
    const Place at = place_of<L>(rows, part, seed, 0);
    const int skip = D::signs ? 0 : at.skip;
    const bool aligned = packs_aligned<L::width>(p - skip, out - skip);
    for (int q = int(threadIdx.x); q < L::count_items(at); q += block_threads) {
        Pack<T, L::width> x[L::runs];
        S sum[L::elements];
        if (moves) load_item<L>(p, q, skip, at.size, aligned, x);  // under way while the noise is made
        L::make(at, q, terms, sum);
        for (int e = 0; e < L::elements; ++e) {
            T& stored = x[e / L::width][e % L::width];
            const S old = moves ? Format::load(stored) : S(0);
            if (!moves) stored = Format::store(sum[e]);
            else if (!(magnitude(old) > threshold)) stored = Format::store(old * shrink + sum[e]);
        }
        store_item<L>(out, q, skip, at.size, aligned, x);
    }
}

template <class Format, bool moves, class T = typename Format::T, class S = typename Format::S>
int32_t sum_list(const char* name, CURVK_SCRATCH_LIST(T), void* stream) {
    const S shrink = S(1.0 - decay), bound = S(threshold);
    return with_terms<S>(name, draws, coefs, k, stream, [&](const Terms<S>& terms) {
        return with_distribution(dist, [&](auto distribution) {
            const auto kernel = sum_draws<Format, decltype(distribution), moves>;
            const auto one = [&](const Rows& rows, int64_t chunks, int64_t) {
                return launch(name, kernel, chunks, block_threads, stream, rows, terms, uint64_t(seed), shrink, bound);
            };
            return for_rows(sizes, count, chunk_elements, {p, out, tensor, offset}, one);
        });
    });
}

// ---- inner products with draws ------------------------------------------------------------------------------------------
// A block takes a chunk, a stretch of the stream at a time: its threads put the noise of up to eight draws into shared
// memory, then 16 threads a draw add products, in the order of the CPU's lanes.

constexpr int stretch = 1024, draws_together = 8;

template <class D>
struct Stretch {
    using M = Made<D>;
    using Stored = float;
    static constexpr int length = stretch + 16;  // two draws' lanes are in different banks
    static constexpr int items = stretch / M::elements;
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t number, int q, float* z) {
        float own[M::elements];
        M::make(stream, number * items + uint64_t(q), own);
        for (int e = 0; e < M::elements; ++e) z[M::at(q, e)] = own[e];
    }
    __device__ __forceinline__ static double value(const float* z, int i) { return double(z[i]); }
};

template <>
struct Stretch<Rademacher> {
    using Stored = uint32_t;
    static constexpr int length = stretch / 32, items = int(tile_blocks);
    __device__ __forceinline__ static void make(const Stream& stream, uint64_t number, int q, uint32_t* words) {
        put_words(stream, number * items + uint64_t(q), words);
    }
    __device__ __forceinline__ static double value(const uint32_t* words, int i) {
        return words[i / 32] >> i % 32 & 1 ? -1.0 : 1.0;
    }
};

// partials[j chunks + chunk] <- the chunk's sum for draw j. `together` draws a block.
template <class Format, class D, int together, class T = typename Format::T>
__global__ void __launch_bounds__(block_threads)
    dot_draws(CURVK_GRID_CONSTANT(Rows) rows, CURVK_GRID_CONSTANT(Terms<float>) terms, uint64_t seed, double* partials,
              int64_t chunks) {
    using N = Stretch<D>;
    __shared__ double values[stretch];
    __shared__ typename N::Stored noise[together][N::length];
    const int64_t groups = (terms.k + together - 1) / together;
    const int64_t chunk = blockIdx.x / groups, first = blockIdx.x % groups * together;
    const int count = terms.k - first < together ? int(terms.k - first) : together;
    const Part part = part_of(rows, chunk, sum_chunk);
    const T* const v = rows.address<const T>(from_column, part.row, part.begin);
    const uint64_t index = rows.at(offset_column, part.row) + uint64_t(part.begin);
    Stream stream{seed, uint32_t(rows.at(tensor_column, part.row)), 0};
    uint64_t number = index / stretch;
    const int own = int(threadIdx.x / lanes), lane = int(threadIdx.x % lanes), size = int(part.size);
    double sum = 0;
    for (int base = -int(index % stretch); base < size; base += stretch, ++number) {  // stretches of the stream, not of v
        const int begin = base > 0 ? base : 0, end = base + stretch < size ? base + stretch : size;
        for (int i = begin + int(threadIdx.x); i < end; i += block_threads) values[i - base] = double(Format::load(v[i]));
        for (int q = int(threadIdx.x); q < count * N::items; q += block_threads) {
            stream.draw = terms[first + q / N::items].draw;
            N::make(stream, number, q % N::items, noise[q / N::items]);
        }
        __syncthreads();
        if (own < count)
            for (int i = begin + ((lane - begin) & (int(lanes) - 1)); i < end; i += int(lanes))
                sum += values[i - base] * N::value(noise[own], i - base);
        __syncthreads();
    }
    sum = fold_threads(sum);
    if (lane == 0 && own < count) partials[(first + own) * chunks + chunk] = sum;
}

// out[j] <- the chunks' sums of draw j in order; a block for each.
__global__ void __launch_bounds__(block_threads) add_draws(const double* partials, int64_t chunks, double* out) {
    const double sum = sum_in_order(partials + blockIdx.x * chunks, chunks, 1);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <class Format, class T = typename Format::T>
int32_t dot_list(CURVK_DOT_LIST(T), void* stream) {
    const int64_t chunks = count_chunks(sizes, count), together = k == 1 ? 1 : draws_together;
    const int64_t groups = (k + together - 1) / together;
    const Scratch<double> partials("dot_seeds", chunks * k, stream);
    if (partials.status) return partials.status;
    const auto all = [&](const Terms<float>& terms) {
        return with_distribution(dist, [&](auto distribution) {
            using D = decltype(distribution);
            const auto kernel = k == 1 ? dot_draws<Format, D, 1> : dot_draws<Format, D, draws_together>;
            const auto one = [&](const Rows& rows, int64_t n, int64_t before) {
                return launch("dot_seeds", kernel, n * groups, block_threads, stream, rows, terms, uint64_t(seed),
                              partials.data + before, chunks);
            };
            return for_rows(sizes, count, sum_chunk, {v, nullptr, tensor, offset}, one);
        });
    };
    if (const int32_t status = with_terms<float>("dot_seeds", draws, nullptr, k, stream, all)) return status;
    return launch("dot_seeds", add_draws, k, block_threads, stream, partials.data, chunks, out);
}

// ---- the grid ---------------------------------------------------------------------------------------------------------

constexpr uint32_t rounding_purpose = uint32_t{1} << 28;

struct GridScalars {
    float quantum, scale, move, coef, decay;
};

template <class D, bool updates>
__global__ void __launch_bounds__(block_threads)
    grid(CURVK_GRID_CONSTANT(Rows) rows, uint64_t seed, uint32_t draw, const GridScalars s) {
    using M = Made<D>;
    using U = Made<Uniform>;
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    float* const p = rows.address<float>(from_column, part.row, part.begin);
    const Place at = place_of<M>(rows, part, seed, draw);
    const bool aligned = packs_aligned<M::width>(p - at.skip);
    const Stream rounding{seed, at.stream.tensor ^ rounding_purpose, draw};
    const int items = items_of<M>(at);
    for (int q = int(threadIdx.x); q < items; q += block_threads) {
        Pack<float, M::width> stored[M::runs];
        float z[M::elements], u[M::elements];
        load_item<M>(p, q, at.skip, at.size, aligned, stored);
        M::make(at.stream, at.tile * M::items + uint64_t(q), z);
        if (updates) {  // the elements' uniforms are those of one block in each of the tiles of 32
            constexpr int tiles = M::span / U::span;
            const uint64_t tile = at.tile + unsigned(q) / M::items;
            for (int t = 0; t < tiles; ++t)
                U::make(rounding, (tile * tiles + uint64_t(t)) * U::items + unsigned(q) % M::items, u + t * U::elements);
        }
        for (int e = 0; e < M::elements; ++e) {
            float& x = stored[e / M::width][e % M::width];
            x = x + rintf(s.scale * z[e]) * s.move;
            if (updates) x = x + floorf((s.coef * z[e] - s.decay * x) + u[e]) * s.quantum;
        }
        store_item<M>(p, q, at.skip, at.size, aligned, stored);
    }
}

// ---- the generator ----------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(block_threads)
    generate(const int64_t* counter, const int64_t* key, int64_t* out, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x;
    if (i >= n) return;
    uint32_t c[4];
    for (int j = 0; j < 4; ++j) c[j] = uint32_t(counter[4 * i + j]);
    const FourWords words = philox(c[0], c[1], c[2], c[3], uint32_t(key[0]), uint32_t(key[1]));
    for (int j = 0; j < 4; ++j) out[4 * i + j] = words.w[j];
}

}  // namespace

int32_t curvk_noise_grid_list_f32(CURVK_GRID_LIST(float), void* stream) {
    const GridScalars s{float(quantum), float(scale / quantum), float(double(steps) * quantum), float(coef / quantum),
                        float(decay / quantum)};
    return with_distribution(dist, [&](auto distribution) {
        using D = decltype(distribution);
        const auto kernel = update ? grid<D, true> : grid<D, false>;
        const auto one = [&](const Rows& rows, int64_t chunks, int64_t) {
            return launch("noise_grid", kernel, chunks, block_threads, stream, rows, uint64_t(seed), uint32_t(draw), s);
        };
        return for_rows(sizes, count, chunk_elements, {p, nullptr, tensor, offset}, one);
    });
}

#define NOISE(FMT, T, Format)                                                                                                \
    int32_t curvk_noise_fill_list_##FMT(CURVK_FILL_LIST(T), void* stream) {                                                  \
        return sum_list<Format, false>("noise_fill", out, out, tensor, offset, sizes, count, &draw, nullptr, 1, 0, 0, seed,  \
                                       dist, stream);                                                                        \
    }                                                                                                                        \
    int32_t curvk_axpy_seeds_list_##FMT(CURVK_AXPY_LIST(T), void* stream) {                                                  \
        return sum_list<Format, true>("axpy_seeds", p, p, tensor, offset, sizes, count, draws, coefs, k, decay, threshold,   \
                                      seed, dist, stream);                                                                   \
    }                                                                                                                        \
    int32_t curvk_noise_scratch_list_##FMT(CURVK_SCRATCH_LIST(T), void* stream) {                                            \
        return sum_list<Format, true>("noise_scratch", p, out, tensor, offset, sizes, count, draws, coefs, k, decay,         \
                                      threshold, seed, dist, stream);                                                        \
    }                                                                                                                        \
    int32_t curvk_dot_seeds_list_##FMT(CURVK_DOT_LIST(T), void* stream) {                                                    \
        return dot_list<Format>(v, tensor, offset, sizes, count, draws, out, k, seed, dist, stream);                         \
    }
NOISE(f32, float, F32)
NOISE(f64, double, F64)
NOISE(bf16, uint16_t, BF16)
NOISE(f16, uint16_t, F16)

int32_t curvk_philox4x32_i64(const int64_t* counter, const int64_t* key, int64_t* out, int64_t n, void* stream) {
    const int64_t blocks = (n + block_threads - 1) / block_threads;
    return launch("philox4x32", generate, blocks, block_threads, stream, counter, key, out, n);
}

}  // namespace CURVK_LEVEL
