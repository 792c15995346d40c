#include "core/kernel.h"

namespace CURVK_LEVEL {
#include "curvk/stein.h"
namespace {

// Particles per thread below which a second thread costs more than it brings: some 16,384 multiply-adds.
inline int64_t particle_grain(int64_t d, int64_t popsize) {
    const int64_t each = d * d * (popsize + 4) + 64;
    return each < 16384 ? 16384 / each : 1;
}

template <int64_t d>
struct Size {
    constexpr operator int64_t() const { return d; }
};

// Runs f with d as a constant where it is small: loops of a run-time length of 2 cost more than their arithmetic.
template <class F>
inline void with_size(int64_t d, F f) {
    switch (d) {
        case 1: return f(Size<1>{});
        case 2: return f(Size<2>{});
        case 3: return f(Size<3>{});
        case 4: return f(Size<4>{});
        default: return f(d);
    }
}

// y <- y + a x
template <class T>
inline void add(T a, const T* __restrict x, T* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

template <class T>
inline void multiply(T a, T* __restrict x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] *= a;
}

template <class T>
inline T sum_squares(const T* __restrict x, int64_t n) {
    T sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

// ---- the factor -----------------------------------------------------------------------------------------------------

// The power of two a that brings mean / a^2 into [1, 4); 1 where the mean is not finite and positive.
template <class T>
inline T gauge(T mean) {
    T a = 1;
    if (!(mean > 0 && mean < Real<T>::infinity)) return a;
    for (; mean >= 4; mean *= T(0.25)) a *= 2;
    for (; mean < 1; mean *= 4) a *= T(0.5);
    return a;
}

template <class T>
void factor_one(const T* __restrict w, const T* __restrict B, T* __restrict C, T* __restrict sigma, T* __restrict p_c,
                T* __restrict D, T* __restrict A, int64_t d, T condition, bool renormalise) {
    T inverse = 1;
    if (renormalise) {
        T trace = 0;
        for (int64_t k = 0; k < d; ++k) trace += w[k];
        const T a = gauge(trace / T(d));
        inverse = 1 / a;
        if (a != 1) {
            *sigma *= a;
            multiply(inverse, p_c, d);
            multiply(inverse, C, d * d);  // in two steps: the square may leave the range
            multiply(inverse, C, d * d);
        }
    }
    const T low = w[0] * inverse * inverse, high = w[d - 1] * inverse * inverse;
    const T missing = high / condition - low, lift = missing > 0 ? missing : T(0);
    if (lift > 0)
        for (int64_t k = 0; k < d; ++k) C[k * d + k] += lift;
    for (int64_t k = 0; k < d; ++k) {
        const T length = root(w[k] * inverse * inverse + lift);
        D[k] = length;
        for (int64_t r = 0; r < d; ++r) A[k * d + r] = length * B[r * d + k];
    }
}

template <class T>
int32_t factor(CURVK_STEIN_FACTOR(T)) {
    for_ranges(n, particle_grain(d, 0), [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            factor_one(w + i * d, B + i * d * d, C + i * d * d, sigma + i, p_c + i * d, D + i * d, A + i * d * d, d,
                       T(condition), bool(renormalise));
    });
    return 0;
}

// ---- the samples ----------------------------------------------------------------------------------------------------

template <class T>
inline void place(const T* __restrict x, T sigma, const T* __restrict y, T* __restrict candidate, int64_t d) {
    for (int64_t r = 0; r < d; ++r) candidate[r] = x[r] + sigma * y[r];
}

template <class T, class N>
void sample_range(const T* x, const T* sigma, const T* A, const T* z, T* y, T* candidates, N d, int64_t popsize,
                  int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
        for (int64_t k = i * popsize; k < (i + 1) * popsize; ++k) {
            T* const to = y + k * d;
            for (int64_t r = 0; r < d; ++r) to[r] = 0;
            for (int64_t c = 0; c < d; ++c) add(z[k * d + c], A + (i * d + c) * d, to, d);
            place(x + i * d, sigma[i], to, candidates + k * d, d);
        }
}

template <class T>
int32_t sample(CURVK_STEIN_SAMPLE(T)) {
    for_ranges(n, particle_grain(d, popsize), [=](int64_t begin, int64_t end) {
        with_size(d, [=](auto size) { sample_range(x, sigma, A, z, y, candidates, size, popsize, begin, end); });
    });
    return 0;
}

// ---- selection ------------------------------------------------------------------------------------------------------

// A total order, so that every way of sorting gives the same.
inline bool before(const double* values, int64_t a, int64_t b) {
    const double x = values[a], y = values[b];
    if (x > y) return true;
    if (x < y) return false;
    const bool lost = x != x, other_lost = y != y;
    return lost == other_lost ? a < b : other_lost;
}

// Shell's sort with the gaps of Knuth; for a dozen samples the insertion sort it ends with is nearly all of it.
inline void sort(const double* values, int64_t* order, int64_t count) {
    for (int64_t k = 0; k < count; ++k) order[k] = k;
    int64_t gap = 1;
    while (gap < count / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (int64_t k = gap; k < count; ++k) {
            const int64_t own = order[k];
            int64_t at = k;
            for (; at >= gap && before(values, own, order[at - gap]); at -= gap) order[at] = order[at - gap];
            order[at] = own;
        }
}

template <class T>
int32_t shift_means(CURVK_STEIN_SHIFT(T)) {
    const int64_t parents = mu < popsize ? mu : popsize;
    for_ranges(n, particle_grain(d, popsize), [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t* const own = order + i * popsize;
            const double* const found = values + i * popsize;
            T* const to = shift + i * d;
            sort(found, own, popsize);
            for (int64_t r = 0; r < d; ++r) to[r] = 0;
            if (found[own[0]] != found[own[0]])
                for (int64_t k = 0; k < popsize; ++k) own[k] = -1;
            else
                for (int64_t k = 0; k < parents; ++k) add(weights[k], y + (i * popsize + own[k]) * d, to, d);
        }
    });
    return 0;
}

// ---- repulsion ------------------------------------------------------------------------------------------------------

template <class T>
int32_t center(CURVK_STEIN_CENTER(T)) {
    for (int64_t r = 0; r < d; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += double(x[i * d + r]);
        const T mean = T(sum / double(n));
        for (int64_t i = 0; i < n; ++i) columns[i * c + r] = centred[i * d + r] = x[i * d + r] - mean;
    }
    return 0;
}

template <class T>
int32_t repel(CURVK_STEIN_REPEL(T)) {
    for (int64_t i = 0; i < n; ++i) {
        const T* const product = products + i * c;
        for (int64_t r = 0; r < d; ++r)
            repulsion[i * d + r] = T(weight) * (centred[i * d + r] * product[d] - product[r]);
    }
    return 0;
}

// ---- adaptation -----------------------------------------------------------------------------------------------------

template <class T>
struct Rates {
    T keep_sigma, gain_sigma, keep_c, gain_c, c_1, c_mu, decay, stalled_decay, rate, inv_chi, limit, sigma_min, sigma_max;
};

template <class T>
Rates<T> make_rates(const T* weights, int64_t popsize, double mu_eff, double c_sigma, double d_sigma, double c_c, double c_1,
                    double c_mu, double chi, double limit, double sigma_min, double sigma_max) {
    double sum = 0;
    for (int64_t k = 0; k < popsize; ++k) sum += double(weights[k]);
    const double decay = 1.0 - c_1 - c_mu * sum;
    return {T(1.0 - c_sigma),
            T(sqrt(c_sigma * (2.0 - c_sigma) * mu_eff)),
            T(1.0 - c_c),
            T(sqrt(c_c * (2.0 - c_c) * mu_eff)),
            T(c_1),
            T(c_mu),
            T(decay),
            T(decay + c_1 * c_c * (2.0 - c_c)),
            T(c_sigma / d_sigma),
            T(1.0 / chi),
            T(limit),
            T(sigma_min),
            T(sigma_max)};
}

// Where the mean moves, and in path the step in units of sigma that the paths take; false where that is nowhere.
template <class T, class N>
inline bool move(const T* __restrict base, T scale, const T* __restrict repulsion, const T* __restrict x, T* __restrict moved,
                 T* __restrict path, T sigma, bool in_paths, N d) {
    bool finite = true;
    for (int64_t r = 0; r < d; ++r) {
        const T own = base[r] / scale;
        const T whole = repulsion ? own + repulsion[r] / sigma : own;
        moved[r] = x[r] + sigma * whole;
        path[r] = in_paths ? whole : own;
        finite = finite && moved[r] - moved[r] == 0;
    }
    return finite;
}

// The rows of the lower triangle: row <- decay row + (c_1 p_c[r]) p_c + sum of (v_k y_k[r]) y_k.
template <class T, class N>
inline void update_covariance(T* __restrict C, const T* __restrict p_c, const T* __restrict y, const int64_t* __restrict order,
                              const T* __restrict v, T decay, T c_1, N d, int64_t popsize) {
    for (int64_t r = 0; r < d; ++r) {
        T* const row = C + r * d;
        const T own = c_1 * p_c[r];
        for (int64_t c = 0; c <= r; ++c) row[c] = decay * row[c] + own * p_c[c];
        for (int64_t k = 0; k < popsize; ++k) {
            const T* const sample = y + order[k] * d;
            add(v[k] * sample[r], sample, row, r + 1);
        }
    }
    for (int64_t r = 0; r < d; ++r)
        for (int64_t c = r + 1; c < d; ++c) C[r * d + c] = C[c * d + r];
}

// The arrays that a particle adapts with; drive and repulsion may be null.
template <class T>
struct Search {
    const T *y, *z;
    const int64_t* order;
    const T *weights, *shift, *drive, *repulsion, *B, *D, *A;
    T *x, *sigma, *C, *p_sigma, *p_c, *work;
};

template <class T, class N>
void adapt_one(const Search<T>& a, const Rates<T>& s, int64_t i, N d, int64_t popsize, bool in_paths) {
    const int64_t row = i * d, square = row * d, *const order = a.order + i * popsize;
    T *const path = a.work + i * (2 * d + popsize), *const turned = path + d, *const v = turned + d;
    T *const p_sigma = a.p_sigma + row, *const p_c = a.p_c + row;
    const T sigma = a.sigma[i];
    const T* const base = a.drive ? a.drive + row : a.shift + row;
    const T* const pushed = a.repulsion ? a.repulsion + row : nullptr;
    if (!move(base, a.drive ? sigma : T(1), pushed, a.x + row, turned, path, sigma, in_paths, d)) return;
    for (int64_t r = 0; r < d; ++r) a.x[row + r] = turned[r];
    for (int64_t k = 0; k < d; ++k) turned[k] = 0;
    for (int64_t r = 0; r < d; ++r) add(path[r], a.B + square + r * d, turned, d);
    multiply(s.keep_sigma, p_sigma, d);
    for (int64_t k = 0; k < d; ++k) {
        const T length = a.D[row + k];
        add(s.gain_sigma * (turned[k] / length / length), a.A + square + k * d, p_sigma, d);
    }
    const T norm = root(sum_squares(p_sigma, d));
    const bool stalled = !(norm < s.limit);
    multiply(s.keep_c, p_c, d);
    if (!stalled) add(s.gain_c, path, p_c, d);
    for (int64_t k = 0; k < popsize; ++k) {
        v[k] = s.c_mu * a.weights[k];
        if (a.weights[k] < 0) {
            const T length = sum_squares(a.z + (i * popsize + order[k]) * d, d);
            v[k] = length > 0 ? v[k] * T(int64_t(d)) / length : T(0);
        }
    }
    update_covariance(a.C + square, p_c, a.y + i * popsize * d, order, v, stalled ? s.stalled_decay : s.decay, s.c_1, d, popsize);
    const T wide = sigma * exp_of(s.rate * (norm * s.inv_chi - T(1)));
    const T bounded = wide < s.sigma_min ? s.sigma_min : wide;
    a.sigma[i] = bounded > s.sigma_max ? s.sigma_max : bounded;
}

template <class T, class N>
void adapt_range(const Search<T>& a, const Rates<T>& s, N d, int64_t popsize, bool in_paths, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
        if (a.order[i * popsize] >= 0) adapt_one(a, s, i, d, popsize, in_paths);
}

template <class T>
int32_t adapt(CURVK_STEIN_ADAPT(T)) {
    const Search<T> a{y, z, order, weights, shift, drive, repulsion, B, D, A, x, sigma, C, p_sigma, p_c, work};
    const Rates<T> s = make_rates(weights, popsize, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi, limit, sigma_min, sigma_max);
    for_ranges(n, particle_grain(d, popsize), [=](int64_t begin, int64_t end) {
        with_size(d, [=](auto size) { adapt_range(a, s, size, popsize, in_paths, begin, end); });
    });
    return 0;
}

}  // namespace

#define STEIN(FMT, T)                                                                                            \
    int32_t curvk_stein_factor_##FMT(CURVK_STEIN_FACTOR(T)) {                                                    \
        return factor<T>(w, B, C, sigma, p_c, D, A, n, d, condition, renormalise);                               \
    }                                                                                                            \
    int32_t curvk_stein_sample_##FMT(CURVK_STEIN_SAMPLE(T)) {                                                    \
        return sample<T>(x, sigma, A, z, y, candidates, n, d, popsize);                                          \
    }                                                                                                            \
    int32_t curvk_stein_shift_##FMT(CURVK_STEIN_SHIFT(T)) {                                                      \
        return shift_means<T>(y, values, weights, order, shift, n, d, popsize, mu);                              \
    }                                                                                                            \
    int32_t curvk_stein_center_##FMT(CURVK_STEIN_CENTER(T)) {                                                    \
        return center<T>(x, centred, columns, n, d, c);                                                          \
    }                                                                                                            \
    int32_t curvk_stein_repel_##FMT(CURVK_STEIN_REPEL(T)) {                                                      \
        return repel<T>(centred, products, repulsion, n, d, c, weight);                                          \
    }                                                                                                            \
    int32_t curvk_stein_adapt_##FMT(CURVK_STEIN_ADAPT(T)) {                                                      \
        return adapt<T>(y, z, order, weights, shift, drive, repulsion, B, D, A, x, sigma, C, p_sigma, p_c, work, n, d, \
                        popsize, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi, limit, sigma_min, sigma_max, in_paths); \
    }
STEIN(f32, float)
STEIN(f64, double)

}  // namespace CURVK_LEVEL
