#include "core/jacobi.h"
#include "cuda/kernel.cuh"

// A matrix belongs to a team: one thread for the smallest, up to a warp's 32 for sides of 32, a block of 256 beyond. It lies
// in shared memory, with odd rows. The pairs of one sum p + q have no index in common and the CPU, too, finds all their
// rotations before it makes one; so a team finds them side by side and, after a barrier, makes them side by side. Where two
// rotations meet, in the 2 x 2 elements of their rows and columns, one thread makes both in the CPU's order. Sums are one
// thread's. Hence the CPU's bits.
// The teams of a warp take the same path to the end of the one that needs most sweeps, as the lanes of the CPU's vectors do:
// a matrix without anything left to rotate stays as it is.

namespace CURVK_LEVEL {
#include "curvk/linalg.h"
namespace {

template <class S>
using One = Rotation<S, S, bool>;

// ---- teams ------------------------------------------------------------------------------------------------------------

template <int T>
struct Threads {
    static constexpr int threads = T;
    int rank;  // in the team

    __device__ Threads() : rank(int(threadIdx.x) % T) {}
    __device__ __forceinline__ static void wait() {
        if (T > 32) __syncthreads();
        else if (T > 1) __syncwarp();
    }
    // Waits; true if any of those that wait together says so.
    __device__ __forceinline__ static bool any(bool value) {
        if (T == 1) return value;
        if (T > 32) return __syncthreads_or(value);
        const bool found = __any_sync(0xffffffffu, value);
        __syncwarp();
        return found;
    }
};

// They share a matrix of up to `words` numbers in shared memory, work included; with `outside`, the rotations' product lies
// in the result's device memory (in cache), because the two are too large.
template <int T, int W, bool O = false>
struct Team : Threads<T> {
    static constexpr int words = W | 1;  // odd: neighbours' elements fall into different banks
    static constexpr bool outside = O;
    static constexpr int block = T > 32 ? T : 64, per_block = block / T;
    int place;  // in the block

    __device__ Team() : place(int(threadIdx.x) / T) {}
};

// The number of words for m x m, with what goes with it.
constexpr int square_words(int m) { return m * (2 * (m | 1) + 3); }

// Calls f(identity of it) for the smallest kind of team that has room for `words`. Static shared memory ends at 48 KB: doubles of more
// than 48 rows and columns hold one of the two matrices only.
template <class S, class F>
int32_t with_team(int64_t words, F f) {
    if (words <= square_words(4)) return f(Identity<Team<1, square_words(4)>>{});
    if (words <= square_words(8)) return f(Identity<Team<8, square_words(8)>>{});
    if (words <= square_words(16)) return f(Identity<Team<16, square_words(16)>>{});
    if (words <= square_words(32)) return f(Identity<Team<32, square_words(32)>>{});
    if constexpr (sizeof(S) == 4) {
        return f(Identity<Team<block_threads, square_words(64)>>{});
    } else {
        if (words <= square_words(48)) return f(Identity<Team<block_threads, square_words(48)>>{});
        return f(Identity<Team<block_threads, 64 * (65 + 3), true>>{});
    }
}

// e / divisor for e below 2048 and divisors up to 64 (the remainder of 2^20 / divisor costs less than 1 / 64).
struct Quotient {
    uint32_t inverse;
    __device__ explicit Quotient(int divisor) : inverse((1u << 20) / uint32_t(divisor) + 1) {}
    __device__ __forceinline__ int operator()(int e) const { return int(uint32_t(e) * inverse >> 20); }
};

// ---- scaling ----------------------------------------------------------------------------------------------------------

// Scales `count` rows of `length` numbers, `step` apart, in place; a matrix that holds a NaN or an infinity becomes zero and
// is `bad`. `most` has room for a number a row.
template <class S, class T>
__device__ Scale<S, S> scale_in(const T& team, S* x, int count, int length, int step, S* most, bool& bad) {
    for (int k = team.rank; k < count; k += T::threads) {
        bool finite = true;
        for (int e = 0; e < length; ++e) finite = finite && x[k * step + e] - x[k * step + e] == S(0);
        most[k] = finite ? largest<S>(x + k * step, length) : S(Real<S>::infinity);
    }
    team.wait();
    S all_rows = 0;
    for (int k = 0; k < count; ++k) all_rows = most[k] > all_rows ? most[k] : all_rows;
    bad = all_rows == S(Real<S>::infinity);
    const Scale<S, S> scale(bad ? S(0) : all_rows);
    for (int k = team.rank; k < count; k += T::threads)
        for (int e = 0; e < length; ++e) x[k * step + e] = bad ? S(0) : scale.in(x[k * step + e]);
    team.wait();
    return scale;
}

template <class S, class T>
__device__ void identity(const T& team, S* v, int d, int step) {
    for (int k = team.rank; k < d; k += T::threads)
        for (int i = 0; i < d; ++i) v[k * step + i] = S(i == k);
}

// ---- rotations --------------------------------------------------------------------------------------------------------

// The pairs first + k < sum - first - k, k < count.
struct Pairs {
    int sum, first, count;
    __device__ __forceinline__ int p(int k) const { return first + k; }
    __device__ __forceinline__ int q(int k) const { return sum - first - k; }
};

// cosines[k] and cosines[count + k] hold the cosine and the sine of pair k.
template <class S>
struct Turn {
    S c, s;
    __device__ __forceinline__ Turn(const S* cosines, int count, int k) : c(cosines[k]), s(cosines[count + k]) {}
    __device__ __forceinline__ bool rests() const { return c == S(1) && s == S(0); }
    __device__ __forceinline__ void operator()(S& a, S& b) const { rotate(c, s, a, b); }
};

// One sweep over the pairs of [0, d) by p + q: find(p, q) gives a rotation, make(pairs) makes those of a sum. False where
// there were none.
template <class S, class T, class Find, class Make>
__device__ __forceinline__ bool sweep(const T& team, int d, S* cosines, Find find, Make make) {
    bool rotated = false;
    for (int sum = 1; sum < 2 * d - 2; ++sum) {
        const int first = sum < d ? 0 : sum - d + 1;
        const Pairs pairs{sum, first, (sum + 1) / 2 - first};
        bool rotates = false;
        for (int k = team.rank; k < pairs.count; k += T::threads) {
            const One<S> r = find(pairs.p(k), pairs.q(k));
            cosines[k] = r.c;
            cosines[pairs.count + k] = r.s;
            rotates = rotates || r.rotates;
        }
        if (!team.any(rotates)) continue;
        make(pairs);
        team.wait();
        rotated = true;
    }
    return rotated;
}

// Rotates the vectors of `length` numbers that lie `step` apart.
template <class S, class T>
__device__ __forceinline__ void rotate_vectors(const T& team, const Pairs& pairs, const S* cosines, S* x, int length, int step,
                                               const Quotient& by_length) {
    for (int e = team.rank; e < pairs.count * length; e += T::threads) {
        const int k = by_length(e), i = e - k * length;
        const Turn<S> turn(cosines, pairs.count, k);
        if (!turn.rests()) turn(x[pairs.p(k) * step + i], x[pairs.q(k) * step + i]);
    }
}

// Rotates the rows and columns of a symmetric matrix's lower triangle, without the elements of the pairs themselves.
template <class S, class T>
__device__ __forceinline__ void rotate_symmetric(const T& team, const Pairs& pairs, const S* cosines, S* a, int d, int row) {
    const int count = pairs.count;
    const Quotient by_count(count);
    // Pairs k < l: p_k < p_l < q_l < q_k. Rows k and count - 2 - k of that triangle together have `count` places.
    for (int e = team.rank; e < count / 2 * count; e += T::threads) {
        int k = by_count(e), l = e - k * count;
        if (l <= k) {
            if (2 * k == count - 2) continue;
            l += count - 1 - k;
            k = count - 2 - k;
        }
        const Turn<S> outer(cosines, count, k), inner(cosines, count, l);
        if (outer.rests() && inner.rests()) continue;
        S *const pp = a + pairs.p(l) * row + pairs.p(k), *const pq = a + pairs.q(l) * row + pairs.p(k);
        S *const qp = a + pairs.q(k) * row + pairs.p(l), *const qq = a + pairs.q(k) * row + pairs.q(l);
        S x = *pp, y = *pq, z = *qp, w = *qq;
        outer(x, z);
        outer(y, w);
        inner(x, y);
        inner(z, w);
        *pp = x;
        *pq = y;
        *qp = z;
        *qq = w;
    }
    // Indices in no pair: those beyond the pairs, and the middle of an even sum.
    const int beyond = pairs.sum < d ? d - 1 - pairs.sum : pairs.first, from = pairs.sum < d ? pairs.sum + 1 : 0;
    const int single = beyond + (pairs.sum % 2 == 0);
    for (int e = team.rank; e < single * count; e += T::threads) {
        const int j = by_count(e), k = e - j * count, u = j < beyond ? from + j : pairs.sum / 2;
        const int p = pairs.p(k), q = pairs.q(k);
        const Turn<S> turn(cosines, count, k);
        if (!turn.rests()) turn(u < p ? a[p * row + u] : a[u * row + p], u < q ? a[q * row + u] : a[u * row + q]);
    }
}

// ---- order and results ------------------------------------------------------------------------------------------------

// order[place] <- the index of the value that takes it, descending where `falls`.
template <class S, class T>
__device__ void rank(const T& team, const S* values, int d, bool falls, S* order) {
    const S sign = falls ? S(-1) : S(1);
    for (int k = team.rank; k < d; k += T::threads) {
        const S mine = sign * values[k];
        int before = 0;
        for (int j = 0; j < k; ++j) before += sign * values[j] <= mine;
        for (int j = k + 1; j < d; ++j) before += sign * values[j] < mine;
        order[before] = S(k);
    }
}

// What a block's threads write: f(matrix in the block, index in it) for `size` numbers each of `count` matrices.
template <class S, class F>
__device__ __forceinline__ void store_all(S* out, const bool* bad, int count, int size, F f) {
    for (int e = threadIdx.x; e < count * size; e += int(blockDim.x)) {
        const int matrix = e / size;
        out[e] = bad[matrix] ? S(Real<S>::nan) : f(matrix, e - matrix * size);
    }
}

// ---- eigh -------------------------------------------------------------------------------------------------------------

int64_t eigh_words(int64_t d) { return d * (2 * (d | 1) + 2); }

template <class S, class T>
__global__ void __launch_bounds__(T::block) eigh_batch(const S* A, S* w, S* V, int64_t n, int d) {
    using J = Jacobi<S>;
    __shared__ S memory[T::per_block * T::words];
    __shared__ bool bad[T::per_block];
    const T team;
    const int64_t first = int64_t(blockIdx.x) * T::per_block;
    const int count = n - first < T::per_block ? int(n - first) : T::per_block, row = d | 1, row_v = T::outside ? d : row;
    A += first * d * d;
    w += first * d;
    V += first * d * d;

    for (int e = threadIdx.x; e < T::per_block * d * row; e += T::block) {
        const int matrix = e / (d * row), i = e / row % d, j = e % row;
        memory[matrix * T::words + i * row + j] = matrix < count && j <= i ? A[(matrix * d + i) * d + j] : S(0);
    }
    __syncthreads();

    S* const a = memory + team.place * T::words;
    S* const cosines = a + d * row;  // later the order
    S* const value = cosines + d;
    S* const v = T::outside ? V : value + d;
    bool mine_bad;
    const Scale<S, S> scale = scale_in(team, a, d, d, row, value, mine_bad);
    identity(team, v, d, row_v);
    team.wait();

    const auto find = [=](int p, int q) {
        S &pp = a[p * row + p], &qq = a[q * row + q], &pq = a[q * row + p];
        One<S> r;
        r.find(pp, qq, pq, J::eps * J::eps, pq * pq > J::negligible * J::negligible);
        r.diagonal(pp, qq);  // no other pair of the sum uses them
        pq = r.rotates ? S(0) : pq;
        return r;
    };
    const Quotient by_d(d);
    const auto make = [=](const Pairs& pairs) {
        rotate_symmetric(team, pairs, cosines, a, d, row);
        rotate_vectors(team, pairs, cosines, v, d, row_v, by_d);
    };
    for (int done = 0; done < sweeps && sweep(team, d, cosines, find, make); ++done) {}

    for (int k = team.rank; k < d; k += T::threads) {
        S* const x = v + k * row_v;
        value[k] = scale.out(a[k * row + k]) + S(0);
        divide<S>(x, d, S(sign_of<S>(x, d) * root(dot<S>(x, x, d))));
    }
    team.wait();
    rank(team, value, d, false, cosines);
    if (team.rank == 0) bad[team.place] = mine_bad;
    __syncthreads();
    const S* vectors = v - team.place * T::words;  // of the block's first matrix
    if (T::outside) {                              // the result's memory takes them in another order
        for (int e = threadIdx.x; e < d * d; e += T::block) a[e] = v[e];
        __syncthreads();
        vectors = a;
    }
    store_all(w, bad, count, d, [=](int matrix, int e) {
        const int at = matrix * T::words, k = int((cosines - team.place * T::words)[at + e]);
        return (value - team.place * T::words)[at + k];
    });
    store_all(V, bad, count, d * d, [=](int matrix, int e) {
        const int at = matrix * T::words, i = e / d, k = int((cosines - team.place * T::words)[at + e - i * d]);
        return vectors[at + k * row_v + i];
    });
}

template <class S>
int32_t eigh(CURVK_EIGH(S), void* stream) {
    return with_team<S>(eigh_words(d), [=](auto kind) {
        using T = typename decltype(kind)::Type;
        return launch("eigh_batch", eigh_batch<S, T>, (n + T::per_block - 1) / T::per_block, T::block, stream, A, w, V, n,
                      int(d));
    });
}

// ---- svd --------------------------------------------------------------------------------------------------------------

// Gives the columns that vanish a unit vector orthogonal to all others. `lengths`: below the limit where they vanish.
template <class S, class T>
__device__ void complete(const T& team, S* u, int rows, int cols, int step, const S* lengths, S limit, bool bad) {
    constexpr bool alone = T::threads == 1 || T::threads == 32;  // no other team at its barriers
    for (int k = 0; k < cols; ++k) {
        const bool mine = !bad && lengths[k] < limit;
        if (alone ? !mine : !team.any(mine)) continue;
        S* const x = u + k * step;
        const auto done = [=](int j) { return j < k || !(lengths[j] < limit); };
        // What the others leave of each unit vector, then the one of which they leave most.
        if (mine)
            for (int i = team.rank; i < rows; i += T::threads) {
                S left = 1;
                for (int j = 0; j < cols; ++j)
                    if (done(j)) left -= u[j * step + i] * u[j * step + i];
                x[i] = left;
            }
        team.wait();
        S most = -1;
        int unit = 0;
        for (int i = 0; i < rows; ++i)
            if (x[i] > most) most = x[i], unit = i;
        team.wait();
        if (mine)
            for (int i = team.rank; i < rows; i += T::threads) x[i] = i == unit ? S(1) : S(0);
        team.wait();
        for (int twice = 0; twice < 2; ++twice)
            for (int j = 0; j < cols; ++j) {
                const bool takes = mine && done(j);
                if (alone && !takes) continue;
                const S* const y = u + j * step;
                const S sum = dot<S>(y, x, rows);
                team.wait();
                if (takes)
                    for (int i = team.rank; i < rows; i += T::threads) x[i] -= sum * y[i];
                team.wait();
            }
        const S norm = root(dot<S>(x, x, rows));
        team.wait();
        if (mine)
            for (int i = team.rank; i < rows; i += T::threads) x[i] /= norm;
        team.wait();
    }
}

int64_t svd_words(int64_t rows, int64_t cols) { return cols * ((rows | 1) + (cols | 1) + 3); }

// Of the matrix itself or, where it is `wide`, of its transpose: rows >= cols. The blocks that a multiprocessor shall hold
// leave each thread the registers to work without spills.
template <class S, class T>
__global__ void __launch_bounds__(T::block, sizeof(S) == 8 ? 2 : T::threads > 32 ? 4 : 14)
    svd_batch(const S* A, S* U, S* s, S* Vt, int64_t n, int rows, int cols, bool wide) {
    using J = Jacobi<S>;
    __shared__ S memory[T::per_block * T::words];
    __shared__ bool bad[T::per_block];
    const T team;
    const int64_t first = int64_t(blockIdx.x) * T::per_block;
    const int count = n - first < T::per_block ? int(n - first) : T::per_block;
    const int step = rows | 1, step_v = T::outside ? cols : cols | 1;
    const int height = wide ? cols : rows, width = wide ? rows : cols;
    A += first * rows * cols;
    U += first * height * cols;
    s += first * cols;
    Vt += first * cols * width;

    for (int e = threadIdx.x; e < T::per_block * rows * cols; e += T::block) {
        const int matrix = e / (rows * cols), at = e - matrix * rows * cols, i = at / width, j = at - i * width;
        memory[matrix * T::words + (wide ? i * step + j : j * step + i)] = matrix < count ? A[e] : S(0);
    }
    __syncthreads();

    S* const x = memory + team.place * T::words;
    S* const cosines = x + cols * step;  // later the order
    S* const square = cosines + cols;    // later the values
    S* const lengths = square + cols;
    S* const v = T::outside ? (wide ? U : Vt) : lengths + cols;
    bool mine_bad;
    const Scale<S, S> scale = scale_in(team, x, cols, rows, step, square, mine_bad);
    mine_bad = mine_bad || team.place >= count;
    identity(team, v, cols, step_v);

    const S tolerance2 = S(rows) * J::eps * J::eps;
    const auto find = [=](int p, int q) {
        S &pp = square[p], &qq = square[q];
        const bool may = (pp > J::vanishes * J::vanishes) & (qq > J::vanishes * J::vanishes);
        One<S> r;
        r.find(pp, qq, dot<S>(x + p * step, x + q * step, rows), tolerance2, may);
        r.diagonal(pp, qq);  // no other pair of the sum uses them
        return r;
    };
    const Quotient by_rows(rows), by_cols(cols);
    const auto make = [=](const Pairs& pairs) {
        rotate_vectors(team, pairs, cosines, x, rows, step, by_rows);
        rotate_vectors(team, pairs, cosines, v, cols, step_v, by_cols);
    };
    // Squared lengths are updated within a sweep and computed anew at the start of the next.
    for (int k = 0; k < sweeps; ++k) {
        for (int j = team.rank; j < cols; j += T::threads) square[j] = dot<S>(x + j * step, x + j * step, rows);
        team.wait();
        if (!sweep(team, cols, cosines, find, make)) break;
    }

    const S limit = 2 * J::vanishes;  // twice: none escapes that the rotations left alone
    bool nulls = false;
    for (int k = team.rank; k < cols; k += T::threads) {
        S *const left = x + k * step, *const right = v + k * step_v;
        const S stretch = root(dot<S>(right, right, cols));  // what rounding did to both
        const Scale<S, S> own(largest<S>(left, rows));
        for (int i = 0; i < rows; ++i) left[i] = own.in(left[i]);
        const S length = root(dot<S>(left, left, rows));
        const S scaled = own.out(length) / stretch;
        square[k] = scale.out(scaled);
        lengths[k] = scaled;
        nulls = nulls || scaled < limit;
        divide<S>(left, rows, length > S(0) ? length : S(1));
        divide<S>(right, cols, stretch);
    }
    if (team.any(nulls && !mine_bad)) {
        using Few = Threads<(T::threads < 32 ? T::threads : 32)>;  // of a block, one warp: its barriers cost less
        if (T::threads <= 32 || threadIdx.x < 32) complete(Few(), x, rows, cols, step, lengths, limit, mine_bad);
        team.wait();
    }
    for (int k = team.rank; k < cols; k += T::threads) {
        S *const left = x + k * step, *const right = v + k * step_v;
        const S sign = wide ? sign_of<S>(right, cols) : sign_of<S>(left, rows);
        divide<S>(left, rows, sign);
        divide<S>(right, cols, sign);
    }
    rank(team, square, cols, true, cosines);
    if (team.rank == 0) bad[team.place] = mine_bad;
    __syncthreads();

    const S *const of_first = x - team.place * T::words, *const order = of_first + (cosines - x);
    const auto place = [=](int matrix, int to) { return int(order[matrix * T::words + to]); };
    store_all(s, bad, count, cols, [=](int matrix, int to) {
        return of_first[(square - x) + matrix * T::words + place(matrix, to)];
    });
    // Vectors as the rows of Vt or the columns of U.
    const auto store_vectors = [=](const S* vectors, bool as_rows, int length, int apart) {
        store_all(as_rows ? Vt : U, bad, count, cols * length, [=](int matrix, int e) {
            const int by = as_rows ? length : cols, slow = e / by, fast = e - slow * by;
            const int to = as_rows ? slow : fast, i = as_rows ? fast : slow;
            return vectors[matrix * T::words + place(matrix, to) * apart + i];
        });
    };
    store_vectors(of_first, wide, rows, step);
    const S* const others = T::outside ? x : of_first + (v - x);
    if (T::outside) {  // the result's memory takes them in another order
        __syncthreads();
        for (int e = threadIdx.x; e < cols * cols; e += T::block) x[e] = v[e];
        __syncthreads();
    }
    store_vectors(others, !wide, cols, step_v);
}

template <class S>
int32_t svd(CURVK_SVD(S), void* stream) {
    const bool wide = p < d;
    const int64_t rows = wide ? d : p, cols = wide ? p : d;
    return with_team<S>(svd_words(rows, cols), [=](auto kind) {
        using T = typename decltype(kind)::Type;
        return launch("svd_batch", svd_batch<S, T>, (n + T::per_block - 1) / T::per_block, T::block, stream, A, U, s, Vt, n,
                      int(rows), int(cols), wide);
    });
}

}  // namespace

int32_t curvk_eigh_batch_f32(CURVK_EIGH(float), void* stream) { return eigh<float>(A, w, V, n, d, stream); }
int32_t curvk_eigh_batch_f64(CURVK_EIGH(double), void* stream) { return eigh<double>(A, w, V, n, d, stream); }
int32_t curvk_svd_batch_f32(CURVK_SVD(float), void* stream) { return svd<float>(A, U, s, Vt, n, p, d, stream); }
int32_t curvk_svd_batch_f64(CURVK_SVD(double), void* stream) { return svd<double>(A, U, s, Vt, n, p, d, stream); }

}  // namespace CURVK_LEVEL
