#include "core/kernel.h"
#include "core/philox.h"

namespace CURVK_LEVEL {
#include "curvk/noise.h"
namespace {

// Calls f with the distribution's type: the one place that looks at `dist`.
template <class F>
void with_distribution(int64_t dist, F f) {
    if (dist == 0) f(Normal{});
    else if (dist == 1) f(NormalFast{});
    else if (dist == 2) f(Rademacher{});
    else f(Uniform{});
}

constexpr int64_t noise_grain = elementwise_grain / 4;  // a noise value costs about four elementwise steps

// ---- fill -------------------------------------------------------------------------------------------------------------

template <class Format, class T = typename Format::T, class S = typename Format::S>
void store(const S* __restrict z, T* __restrict out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = Format::store(z[i]);
}

template <class Format, class T = typename Format::T, class S = typename Format::S>
int32_t fill_list(CURVK_FILL_LIST(T)) {
    with_distribution(dist, [=](auto distribution) {
        using D = decltype(distribution);
        for_list(sizes, count, noise_grain, [=](int64_t row, int64_t begin, int64_t size) {
            Source<D, S> z({uint64_t(seed), uint32_t(tensor[row]), uint32_t(draw)});
            for_pieces<D>(offset[row] + begin, size, [&](int64_t piece, int64_t skip, int64_t i, int64_t n) {
                store<Format>(z(piece, S(1)) + skip, out[row] + begin + i, n);
            });
        });
    });
    return 0;
}

// ---- sums of draws ----------------------------------------------------------------------------------------------------

// p <- shrink p + sum, or only where |p| <= threshold if masked, which costs three more operations.
template <class Format, bool masked, class T = typename Format::T, class S = typename Format::S>
struct Step {
    S shrink, threshold;

    __attribute__((always_inline)) T apply(T stored, S sum) const {
        const S x = Format::load(stored);
        const T moved = Format::store(x * shrink + sum);
        return masked && magnitude(x) > threshold ? stored : moved;
    }
    static void in_place(T* __restrict p, const S* __restrict sum, int64_t n, const Step s) {
        for (int64_t i = 0; i < n; ++i) p[i] = s.apply(p[i], sum[i]);
    }
    static void out_of_place(const T* __restrict p, T* __restrict out, const S* __restrict sum, int64_t n, const Step s) {
        for (int64_t i = 0; i < n; ++i) out[i] = s.apply(p[i], sum[i]);
    }
};

// Where out is null the result goes to p itself.
template <class Format, class D, bool masked, class T = typename Format::T, class S = typename Format::S>
void sum_rows(T* const* p, T* const* out, CURVK_KEYS, const int64_t* sizes, int64_t count, CURVK_SEEDS) {
    (void)dist;
    const Step<Format, masked> step{S(1.0 - decay), S(threshold)};
    const int64_t grain = noise_grain / (k > 0 ? k : 1);
    for_list(sizes, count, grain > 64 ? grain : 64, [=](int64_t row, int64_t begin, int64_t size) {
        const auto apply = [&](auto sum_of) {
            for_pieces<D>(offset[row] + begin, size, [&](int64_t piece, int64_t skip, int64_t i, int64_t n) {
                T* const from = p[row] + begin + i;
                prefetch_span(from, n);
                const S* const sum = sum_of(piece) + skip;
                if (out) step.out_of_place(from, out[row] + begin + i, sum, n, step);
                else step.in_place(from, sum, n, step);
            });
        };
        const uint32_t word = uint32_t(tensor[row]);
        if (k == 1) {
            Source<D, S> one({uint64_t(seed), word, uint32_t(draws[0])});
            apply([&](int64_t piece) { return one(piece, S(coefs[0])); });
        } else {
            SumSource<D, S> many(uint64_t(seed), word, draws, coefs, k);
            apply([&](int64_t piece) { return many(piece); });
        }
    });
}

template <class Format, class T = typename Format::T>
int32_t sum_list(T* const* p, T* const* out, CURVK_KEYS, const int64_t* sizes, int64_t count, CURVK_SEEDS) {
    with_distribution(dist, [=](auto distribution) {
        using D = decltype(distribution);
        const auto rows = threshold < INFINITY ? sum_rows<Format, D, true> : sum_rows<Format, D, false>;
        rows(p, out, tensor, offset, sizes, count, draws, coefs, k, decay, threshold, seed, dist);
    });
    return 0;
}

// ---- inner products with draws ----------------------------------------------------------------------------------------

constexpr int64_t dot_block = 1024;  // a block's lanes start at lane 0

template <class Format, class T = typename Format::T>
void add_products(const T* __restrict v, const float* __restrict z, int64_t n, double* __restrict total) {
    double lane[lanes];  // a local array of one loop: two arrays, or a struct's, stay in memory
    memcpy(lane, total, sizeof lane);
    const int64_t whole = n - n % lanes;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int64_t l = 0; l < lanes; ++l) lane[l] += double(Format::load(v[i + l])) * double(z[i + l]);
    for (int64_t l = 0; whole + l < n; ++l) lane[l] += double(Format::load(v[whole + l])) * double(z[whole + l]);
    memcpy(total, lane, sizeof lane);
}

template <class Format, class D, class T = typename Format::T>
double dot_chunk_of(const T* v, int64_t size, int64_t offset, const Stream& stream) {
    Source<D, float> z(stream);
    float aligned[dot_block];
    double lane[lanes] = {};
    for (int64_t at = 0; at < size; at += dot_block) {
        const int64_t length = size - at < dot_block ? size - at : dot_block;
        for_pieces<D>(offset + at, length, [&](int64_t piece, int64_t skip, int64_t i, int64_t n) {
            memcpy(aligned + i, z(piece, 1.0f) + skip, size_t(n) * sizeof(float));
        });
        add_products<Format>(v + at, aligned, length, lane);
    }
    return fold(lane);
}

template <class Format, class T = typename Format::T>
int32_t dot_list(CURVK_DOT_LIST(T)) {
    const int64_t chunks = count_chunks(sizes, count);
    double* const partials = static_cast<double*>(malloc((size_t(chunks) + 1) * size_t(k + 1) * sizeof(double)));
    if (!partials) return CURVK_NO_MEMORY;
    with_distribution(dist, [=](auto distribution) {
        using D = decltype(distribution);
        for_chunks(sizes, count, 1, [=](int64_t chunk, int64_t row, int64_t at, int64_t n) {
            for (int64_t j = 0; j < k; ++j)
                partials[chunk * k + j] =
                    dot_chunk_of<Format, D>(v[row] + at, n, offset[row] + at,
                                            Stream{uint64_t(seed), uint32_t(tensor[row]), uint32_t(draws[j])});
        });
    });
    for (int64_t j = 0; j < k; ++j) {
        out[j] = 0;
        for (int64_t c = 0; c < chunks; ++c) out[j] += partials[c * k + j];
    }
    free(partials);
    return 0;
}

// ---- the grid ---------------------------------------------------------------------------------------------------------

constexpr uint32_t rounding_purpose = uint32_t{1} << 28;

struct GridScalars {
    float quantum, scale, move, coef, decay;
};

template <bool updates>
void grid(float* __restrict p, const float* __restrict z, const float* __restrict u, int64_t n, const GridScalars s) {
    for (int64_t i = 0; i < n; ++i) {
        float x = p[i] + rintf(s.scale * z[i]) * s.move;
        if (updates) x = x + floorf((s.coef * z[i] - s.decay * x) + u[i]) * s.quantum;
        p[i] = x;
    }
}

}  // namespace

int32_t curvk_noise_grid_list_f32(CURVK_GRID_LIST(float)) {
    const GridScalars s{float(quantum), float(scale / quantum), float(double(steps) * quantum), float(coef / quantum),
                        float(decay / quantum)};
    with_distribution(dist, [=](auto distribution) {
        using D = decltype(distribution);
        for_list(sizes, count, noise_grain, [=](int64_t row, int64_t begin, int64_t size) {
            const Stream stream{uint64_t(seed), uint32_t(tensor[row]), uint32_t(draw)};
            Source<D, float> z(stream);
            Source<Uniform, float> u({stream.seed, stream.tensor ^ rounding_purpose, stream.draw});
            for_pieces<D>(offset[row] + begin, size, [&](int64_t piece, int64_t skip, int64_t i, int64_t n) {
                const float* const noise = z(piece, 1.0f) + skip;
                float* const here = p[row] + begin + i;
                if (!update) return grid<false>(here, noise, nullptr, n, s);
                for_pieces<Uniform>(offset[row] + begin + i, n, [&](int64_t part, int64_t from, int64_t at, int64_t length) {
                    grid<true>(here + at, noise + at, u(part, 1.0f) + from, length, s);
                });
            });
        });
    });
    return 0;
}

#define NOISE(FMT, T, Format)                                                                                         \
    int32_t curvk_noise_fill_list_##FMT(CURVK_FILL_LIST(T)) {                                                         \
        return fill_list<Format>(out, tensor, offset, sizes, count, draw, seed, dist);                                \
    }                                                                                                                 \
    int32_t curvk_axpy_seeds_list_##FMT(CURVK_AXPY_LIST(T)) {                                                         \
        return sum_list<Format>(p, static_cast<T* const*>(nullptr), tensor, offset, sizes, count, draws, coefs, k,    \
                                decay, threshold, seed, dist);                                                        \
    }                                                                                                                 \
    int32_t curvk_noise_scratch_list_##FMT(CURVK_SCRATCH_LIST(T)) {                                                   \
        return sum_list<Format>(const_cast<T* const*>(p), out, tensor, offset, sizes, count, draws, coefs, k, decay,  \
                                threshold, seed, dist);                                                               \
    }                                                                                                                 \
    int32_t curvk_dot_seeds_list_##FMT(CURVK_DOT_LIST(T)) {                                                           \
        return dot_list<Format>(v, tensor, offset, sizes, count, draws, out, k, seed, dist);                          \
    }
NOISE(f32, float, F32)
NOISE(f64, double, F64)
NOISE(bf16, uint16_t, BF16)
NOISE(f16, uint16_t, F16)

int32_t curvk_philox4x32_i64(const int64_t* counter, const int64_t* key, int64_t* out, int64_t n) {
    for_ranges(n, 1024, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Words zero = {};
            const int64_t* const c = counter + 4 * i;
            Block b[1] = {{zero + uint32_t(c[0]), zero + uint32_t(c[1]), zero + uint32_t(c[2]), zero + uint32_t(c[3])}};
            ten_rounds(b, uint32_t(key[0]), uint32_t(key[1]));
            const Words words[4] = {b->c0, b->c1, b->c2, b->c3};
            for (int j = 0; j < 4; ++j) out[4 * i + j] = uint32_t(words[j][0]);
        }
    });
    return 0;
}

}  // namespace CURVK_LEVEL
