#include "core/jacobi.h"
#include "core/simd.h"

// One matrix in each lane of a vector: x[e] below is element e of as many matrices as a vector has lanes, side by side. A
// lane that has nothing to rotate takes the rotation c = 1, s = 0, which changes nothing but the sign of zeros; so a lane's
// result depends neither on the number of lanes nor on how long the others take.

namespace CURVK_LEVEL {
#include "curvk/linalg.h"
namespace {

template <class S>
using Lanes = typename Vector<S>::Type;
template <class S>
struct MaskOf;
template <>
struct MaskOf<float> {
    typedef int32_t Type __attribute__((vector_size(vector_bytes)));
};
template <>
struct MaskOf<double> {
    typedef int64_t Type __attribute__((vector_size(vector_bytes)));
};
template <class S>
using Mask = typename MaskOf<S>::Type;
template <class S>
using Scales = Scale<S, Lanes<S>>;
template <class S>
constexpr int64_t width = Vector<S>::width;

template <class S>
CURVK_INLINE inline bool any(const Mask<S>& mask) {
    int64_t words[vector_bytes / 8], found = 0;
    memcpy(words, &mask, sizeof words);
    for (int64_t word : words) found |= word;
    return found != 0;
}

// ---- scaling ----------------------------------------------------------------------------------------------------------

// Scales matrices in place; one that holds a NaN or an infinity becomes zero and is marked in `bad`.
template <class S>
Scales<S> scale_in(Lanes<S>* x, int64_t count, Mask<S>& bad) {
    Lanes<S> sum = {};
    for (int64_t e = 0; e < count; ++e) sum += x[e] - x[e];  // 0 for finite numbers
    bad = sum != S(0);
    const Mask<S> good = ~bad;
    for (int64_t e = 0; e < count; ++e) x[e] = good ? x[e] : Lanes<S>{};
    const Scales<S> scale(largest<S>(x, count));
    for (int64_t e = 0; e < count; ++e) x[e] = scale.in(x[e]);
    return scale;
}

// ---- rotations --------------------------------------------------------------------------------------------------------

template <class S>
struct Rotations : Rotation<S, Lanes<S>, Mask<S>> {
    int64_t p, q;  // p < q

    CURVK_INLINE void apply(Lanes<S>* __restrict x, int64_t step_x, Lanes<S>* __restrict y, int64_t step_y,
                            int64_t count) const {
        for (int64_t e = 0; e < count; ++e) rotate(this->c, this->s, x[e * step_x], y[e * step_y]);
    }
};

// One sweep over the pairs p < q of [0, d), by p + q; but for rounding that is row by row, which converges best. The pairs
// of one sum have no index in common: all their rotations are found by `find(rotation)`, whose roots and divisions so
// overlap, and then made by `make(rotation)`. False where there were none.
template <class S, class Find, class Make>
CURVK_INLINE inline bool sweep(int64_t d, Find find, Make make) {
    bool rotated = false;
    Rotations<S> rotations[32];
    for (int64_t sum = 1; sum < 2 * d - 2; ++sum) {
        int64_t count = 0;
        for (int64_t p = sum < d ? 0 : sum - d + 1; 2 * p < sum; ++p) {
            Rotations<S>& r = rotations[count];
            r.p = p;
            r.q = sum - p;
            count += find(r);
        }
        for (int64_t k = 0; k < count; ++k) make(rotations[k]);
        rotated = rotated || count > 0;
    }
    return rotated;
}

template <class S>
void identity(Lanes<S>* v, int64_t d) {
    for (int64_t e = 0; e < d * d; ++e) v[e] = Lanes<S>{};
    for (int64_t k = 0; k < d; ++k) v[k * d + k] = all<Lanes<S>>(S(1));
}

// ---- order and signs --------------------------------------------------------------------------------------------------

// The place of each value: the number of those before it, in descending order where `falls`.
template <class S>
void rank(const Lanes<S>* values, int64_t d, bool falls, Lanes<S>* place) {
    const S sign = falls ? S(-1) : S(1);
    for (int64_t k = 0; k < d; ++k) {
        const Lanes<S> mine = sign * values[k];
        Lanes<S> before = {};
        for (int64_t j = 0; j < k; ++j) before += sign * values[j] <= mine ? all<Lanes<S>>(S(1)) : all<Lanes<S>>(S(0));
        for (int64_t j = k + 1; j < d; ++j) before += sign * values[j] < mine ? all<Lanes<S>>(S(1)) : all<Lanes<S>>(S(0));
        place[k] = before;
    }
}

// ---- eigh -------------------------------------------------------------------------------------------------------------

template <class S, int64_t D>
struct Eigh {
    int64_t size;
    int64_t d() const { return D ? D : size; }
    int64_t row() const { return d() | 1; }  // odd, so that a column's elements fall into different sets of the cache
    int64_t work() const { return d() * (row() + d() + 2); }

    // `count` matrices, no more than lanes.
    void operator()(const S* A, S* w, S* V, int64_t count, Lanes<S>* a) const {
        const int64_t d = this->d(), row = this->row();
        Lanes<S>*const v = a + d * row, *const value = v + d * d, *const place = value + d;
        for (int64_t e = 0; e < d * row; ++e) a[e] = Lanes<S>{};
        for (int64_t l = 0; l < count; ++l)
            for (int64_t i = 0; i < d; ++i)
                for (int64_t j = 0; j <= i; ++j) a[i * row + j][l] = A[(l * d + i) * d + j];
        Mask<S> bad;
        const Scales<S> scale = scale_in<S>(a, d * row, bad);
        identity<S>(v, d);
        diagonalize(a, v);
        for (int64_t k = 0; k < d; ++k) {
            Lanes<S>* const x = v + k * d;
            value[k] = scale.out(a[k * row + k]) + S(0);
            divide<S>(x, d, sign_of<S>(x, d) * roots<S>(dot<S>(x, x, d)));
        }
        rank<S>(value, d, false, place);
        for (int64_t l = 0; l < count; ++l)
            for (int64_t k = 0; k < d; ++k) {
                const int64_t to = int64_t(place[k][l]);
                w[l * d + to] = bad[l] ? Real<S>::nan : value[k][l];
                for (int64_t i = 0; i < d; ++i) V[(l * d + i) * d + to] = bad[l] ? Real<S>::nan : v[k * d + i][l];
            }
    }

   private:
    void diagonalize(Lanes<S>* a, Lanes<S>* v) const {
        using J = Jacobi<S>;
        const int64_t d = this->d(), row = this->row();
        const auto find = [=](Rotations<S>& r) CURVK_INLINE {
            const Lanes<S>& pq = a[r.q * row + r.p];
            const Mask<S> may = pq * pq > J::negligible * J::negligible;
            r.find(a[r.p * row + r.p], a[r.q * row + r.q], pq, J::eps * J::eps, may);
            return any<S>(r.rotates);
        };
        const auto make = [=](const Rotations<S>& r) CURVK_INLINE {
            const int64_t p = r.p, q = r.q;
            r.diagonal(a[p * row + p], a[q * row + q]);
            a[q * row + p] = r.rotates ? Lanes<S>{} : a[q * row + p];
            r.apply(a + p * row, 1, a + q * row, 1, p);
            r.apply(a + (p + 1) * row + p, row, a + q * row + p + 1, 1, q - p - 1);
            r.apply(a + (q + 1) * row + p, row, a + (q + 1) * row + q, row, d - q - 1);
            r.apply(v + p * d, 1, v + q * d, 1, d);
        };
        int done = 0;
        while (done < sweeps && sweep<S>(d, find, make)) ++done;
    }
};

// ---- svd --------------------------------------------------------------------------------------------------------------

// Gives the columns of one lane that vanish a unit vector orthogonal to all others.
template <class S>
void complete(Lanes<S>* u, int64_t rows, int64_t cols, int64_t l, const Mask<S>* null) {
    bool done[64];
    for (int64_t k = 0; k < cols; ++k) done[k] = !null[k][l];
    for (int64_t k = 0; k < cols; ++k) {
        if (done[k]) continue;
        S most = -1;
        int64_t unit = 0;
        for (int64_t i = 0; i < rows; ++i) {
            S left = 1;
            for (int64_t j = 0; j < cols; ++j)
                if (done[j]) left -= u[j * rows + i][l] * u[j * rows + i][l];
            if (left > most) most = left, unit = i;
        }
        Lanes<S>* const x = u + k * rows;
        for (int64_t i = 0; i < rows; ++i) x[i][l] = i == unit ? S(1) : S(0);
        for (int twice = 0; twice < 2; ++twice)
            for (int64_t j = 0; j < cols; ++j) {
                if (!done[j]) continue;
                S sum = 0;
                for (int64_t i = 0; i < rows; ++i) sum += u[j * rows + i][l] * x[i][l];
                for (int64_t i = 0; i < rows; ++i) x[i][l] -= sum * u[j * rows + i][l];
            }
        S sum = 0;
        for (int64_t i = 0; i < rows; ++i) sum += x[i][l] * x[i][l];
        const S norm = root(sum);
        for (int64_t i = 0; i < rows; ++i) x[i][l] /= norm;
        done[k] = true;
    }
}

// Of the matrix itself or, where it is wide, of its transpose: rows >= cols.
template <class S, int64_t D>
struct Svd {
    int64_t p, d;
    bool wide() const { return !D && p < d; }
    int64_t rows() const { return D ? D : wide() ? d : p; }
    int64_t cols() const { return D ? D : wide() ? p : d; }
    int64_t work() const { return cols() * (rows() + cols() + 4); }

    void operator()(const S* A, S* U, S* s, S* Vt, int64_t count, Lanes<S>* x) const {
        const int64_t rows = this->rows(), cols = this->cols();
        Lanes<S>*const v = x + cols * rows, *const value = v + cols * cols, *const place = value + cols;
        Mask<S>* const null = reinterpret_cast<Mask<S>*>(place + cols);
        for (int64_t e = 0; e < rows * cols; ++e) x[e] = Lanes<S>{};
        const int64_t step_row = wide() ? 1 : cols, step_col = wide() ? rows : 1;  // in A
        for (int64_t l = 0; l < count; ++l)
            for (int64_t k = 0; k < cols; ++k)
                for (int64_t i = 0; i < rows; ++i) x[k * rows + i][l] = A[l * rows * cols + i * step_row + k * step_col];
        Mask<S> bad;
        const Scales<S> scale = scale_in<S>(x, cols * rows, bad);
        identity<S>(v, cols);
        orthogonalize(x, v, place + 2 * cols);
        bool nulls = false;
        for (int64_t k = 0; k < cols; ++k) {
            Lanes<S>*const left = x + k * rows, *const right = v + k * cols;
            const Lanes<S> stretch = roots<S>(dot<S>(right, right, cols));  // what rounding did to both
            const Scales<S> own(largest<S>(left, rows));
            for (int64_t i = 0; i < rows; ++i) left[i] = own.in(left[i]);
            const Lanes<S> length = roots<S>(dot<S>(left, left, rows));
            const Lanes<S> scaled = own.out(length) / stretch;
            value[k] = scale.out(scaled);
            null[k] = scaled < 2 * Jacobi<S>::vanishes;  // twice: none escapes that the rotations left alone
            nulls = nulls || any<S>(null[k]);
            divide<S>(left, rows, length > S(0) ? length : all<Lanes<S>>(S(1)));
            divide<S>(right, cols, stretch);
        }
        if (nulls)
            for (int64_t l = 0; l < count; ++l) complete<S>(x, rows, cols, l, null);
        for (int64_t k = 0; k < cols; ++k) {
            const Lanes<S> sign = wide() ? sign_of<S>(v + k * cols, cols) : sign_of<S>(x + k * rows, rows);
            divide<S>(x + k * rows, rows, sign);
            divide<S>(v + k * cols, cols, sign);
        }
        rank<S>(value, cols, true, place);
        const Lanes<S>*const left = wide() ? v : x, *const right = wide() ? x : v;
        const int64_t height = wide() ? cols : rows, width = wide() ? rows : cols;
        for (int64_t l = 0; l < count; ++l)
            for (int64_t k = 0; k < cols; ++k) {
                const int64_t to = int64_t(place[k][l]);
                s[l * cols + to] = bad[l] ? Real<S>::nan : value[k][l];
                for (int64_t i = 0; i < height; ++i)
                    U[(l * height + i) * cols + to] = bad[l] ? Real<S>::nan : left[k * height + i][l];
                for (int64_t i = 0; i < width; ++i)
                    Vt[(l * cols + to) * width + i] = bad[l] ? Real<S>::nan : right[k * width + i][l];
            }
    }

   private:
    // Squared lengths are updated within a sweep and computed anew at the start of the next.
    void orthogonalize(Lanes<S>* x, Lanes<S>* v, Lanes<S>* square) const {
        using J = Jacobi<S>;
        const int64_t rows = this->rows(), cols = this->cols();
        const S tolerance2 = S(rows) * J::eps * J::eps;
        const auto find = [=](Rotations<S>& r) CURVK_INLINE {
            const Lanes<S>&pp = square[r.p], &qq = square[r.q];
            const Mask<S> may = (pp > J::vanishes * J::vanishes) & (qq > J::vanishes * J::vanishes);
            r.find(pp, qq, dot<S>(x + r.p * rows, x + r.q * rows, rows), tolerance2, may);
            return any<S>(r.rotates);
        };
        const auto make = [=](const Rotations<S>& r) CURVK_INLINE {
            r.diagonal(square[r.p], square[r.q]);
            r.apply(x + r.p * rows, 1, x + r.q * rows, 1, rows);
            r.apply(v + r.p * cols, 1, v + r.q * cols, 1, cols);
        };
        for (int k = 0; k < sweeps; ++k) {
            for (int64_t j = 0; j < cols; ++j) square[j] = dot<S>(x + j * rows, x + j * rows, rows);
            if (!sweep<S>(cols, find, make)) break;
        }
    }
};

// ---- groups -----------------------------------------------------------------------------------------------------------

// Calls f(first matrix, number of matrices, work) for groups of as many matrices as a vector has lanes.
template <class S, class F>
int32_t for_groups(int64_t n, int64_t d, int64_t work, F f) {
    int32_t status = CURVK_OK;
    const int64_t grain = 1 + 400 / (d * d * d);
    for_ranges((n + width<S> - 1) / width<S>, grain, [&](int64_t begin, int64_t end) {
        char* const memory = static_cast<char*>(malloc(size_t(work) * sizeof(Lanes<S>) + 64));
        if (!memory) return __atomic_store_n(&status, CURVK_NO_MEMORY, __ATOMIC_RELAXED);
        Lanes<S>* const aligned = reinterpret_cast<Lanes<S>*>(memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64));
        for (int64_t group = begin; group < end; ++group) {
            const int64_t first = group * width<S>;
            f(first, n - first < width<S> ? n - first : width<S>, aligned);
        }
        free(memory);
    });
    return status;
}

template <int64_t D>
struct Size {
    static constexpr int64_t value = D;
};

// Calls f with the size as a constant where that brings much (a third of the time), else with 0.
template <class F>
int32_t with_size(int64_t d, F f) {
    return d == 2 ? f(Size<2>{}) : f(Size<0>{});
}

template <class S>
int32_t eigh(CURVK_EIGH(S)) {
    return with_size(d, [=](auto size) {
        const Eigh<S, decltype(size)::value> solve{d};
        return for_groups<S>(n, d, solve.work(), [=](int64_t i, int64_t count, Lanes<S>* work) {
            solve(A + i * d * d, w + i * d, V + i * d * d, count, work);
        });
    });
}

template <class S>
int32_t svd(CURVK_SVD(S)) {
    const int64_t m = p < d ? p : d;
    return with_size(p == d ? d : 0, [=](auto size) {
        const Svd<S, decltype(size)::value> solve{p, d};
        return for_groups<S>(n, m, solve.work(), [=](int64_t i, int64_t count, Lanes<S>* work) {
            solve(A + i * p * d, U + i * p * m, s + i * m, Vt + i * m * d, count, work);
        });
    });
}

}  // namespace

int32_t curvk_eigh_batch_f32(CURVK_EIGH(float)) { return eigh<float>(A, w, V, n, d); }
int32_t curvk_eigh_batch_f64(CURVK_EIGH(double)) { return eigh<double>(A, w, V, n, d); }
int32_t curvk_svd_batch_f32(CURVK_SVD(float)) { return svd<float>(A, U, s, Vt, n, p, d); }
int32_t curvk_svd_batch_f64(CURVK_SVD(double)) { return svd<double>(A, U, s, Vt, n, p, d); }

}  // namespace CURVK_LEVEL
