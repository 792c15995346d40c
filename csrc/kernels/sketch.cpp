#include "core/kernel.h"
#include "core/memory.h"
#include "core/philox.h"
#include "core/secular.h"

namespace CURVK_LEVEL {
#include "curvk/sketch.h"
namespace {

// ---- sjlt -----------------------------------------------------------------------------------------------------------

constexpr int64_t sjlt_unit = 16;            // columns that threads share out, two cache lines of out
// Of out, which a pass over the rows finds in the L2 cache; but below 128 columns the passes read A no faster than a cache
// that misses.
constexpr int64_t sjlt_tile_bytes = 1 << 19, sjlt_tile_least = 128;
constexpr int64_t together = 4;  // blocks that a row is added to in one go

// Where the rows of a group go in one block, and with which coefficient.
struct Buckets {
    int64_t place[group_words];  // of the first element of out's row
    double coef[group_words];

    void make(const Stream& stream, int64_t group, int64_t block, int64_t width, int64_t d, double scale) {
        uint32_t words[group_words];
        stream.words(group, words);
        for (int64_t i = 0; i < group_words; ++i) {
            const int64_t bucket = int64_t((uint64_t(words[i] >> 1) * uint64_t(width)) >> 31);
            place[i] = (block * width + bucket) * d;
            coef[i] = words[i] & 1 ? -scale : scale;
        }
    }
};

// Adds a row's columns to its places in `count` blocks, which are apart.
template <int64_t count, class T>
CURVK_INLINE inline void add_row(const Buckets* to, int64_t r, const T* __restrict row, double* out, int64_t n) {
    const int64_t b1 = count > 1 ? 1 : 0, b2 = count > 2 ? 2 : 0, b3 = count > 3 ? 3 : 0;
    double *__restrict const y0 = out + to[0].place[r], *__restrict const y1 = out + to[b1].place[r];
    double *__restrict const y2 = out + to[b2].place[r], *__restrict const y3 = out + to[b3].place[r];
    const double c0 = to[0].coef[r], c1 = to[b1].coef[r], c2 = to[b2].coef[r], c3 = to[b3].coef[r];
    for (int64_t j = 0; j < n; ++j) {
        const double x = double(row[j]);
        y0[j] += c0 * x;
        if (count > 1) y1[j] += c1 * x;
        if (count > 2) y2[j] += c2 * x;
        if (count > 3) y3[j] += c3 * x;
    }
}

template <int64_t count, class T>
void add_rows(const Buckets* to, int64_t skip, int64_t rows, const T* A, int64_t d, double* out, int64_t n) {
    for (int64_t r = 0; r < rows; ++r) add_row<count>(to, skip + r, A + r * d, out, n);
}

// Columns begin .. end.
template <class T>
void sjlt_columns(const T* A, double* out, int64_t n, int64_t d, int64_t width, int64_t blocks, uint64_t seed,
                  uint32_t tensor, int64_t first_row, int64_t begin, int64_t end) {
    const double scale = 1.0 / sqrt(double(blocks));
    Buckets to[together];
    for (int64_t i = 0; i < n;) {
        const int64_t row = first_row + i, skip = row % group_words;
        const int64_t rows = n - i < group_words - skip ? n - i : group_words - skip;
        for (int64_t b = 0; b < blocks; b += together) {
            const int64_t count = blocks - b < together ? blocks - b : together;
            for (int64_t k = 0; k < count; ++k)
                to[k].make(Stream{seed, tensor, uint32_t(b + k)}, row / group_words, b + k, width, d, scale);
            const T* const first = A + i * d + begin;
            if (count == 1) add_rows<1>(to, skip, rows, first, d, out + begin, end - begin);
            if (count == 2) add_rows<2>(to, skip, rows, first, d, out + begin, end - begin);
            if (count == 3) add_rows<3>(to, skip, rows, first, d, out + begin, end - begin);
            if (count == 4) add_rows<4>(to, skip, rows, first, d, out + begin, end - begin);
        }
        i += rows;
    }
}

template <class T>
int32_t sjlt(CURVK_SJLT(T)) {
    const int64_t units = (d + sjlt_unit - 1) / sjlt_unit, work = n * blocks * sjlt_unit + 1;
    const int64_t fitting = sjlt_tile_bytes / 8 / s / sjlt_unit * sjlt_unit;
    const int64_t tile = fitting > sjlt_tile_least ? fitting : sjlt_tile_least;
    for_ranges(units, (4 * elementwise_grain + work - 1) / work, [=](int64_t from, int64_t to) {
        const int64_t last = to * sjlt_unit < d ? to * sjlt_unit : d;
        for (int64_t c = from * sjlt_unit; c < last; c += tile)
            sjlt_columns(A, out, n, d, s / blocks, blocks, uint64_t(seed), uint32_t(tensor), first_row, c,
                         c + tile < last ? c + tile : last);
    });
    return 0;
}

int32_t sjlt_rows(CURVK_SJLT_ROWS) {
    const double scale = 1.0 / sqrt(double(blocks));
    for_ranges(n, elementwise_grain / s + 1, [=](int64_t begin, int64_t end) {
        memset(out + begin * s, 0, size_t((end - begin) * s) * sizeof(double));
        Buckets to;
        for (int64_t i = begin; i < end;) {
            const int64_t row = first_row + i, skip = row % group_words;
            const int64_t rows = end - i < group_words - skip ? end - i : group_words - skip;
            for (int64_t b = 0; b < blocks; ++b) {
                to.make(Stream{uint64_t(seed), uint32_t(tensor), uint32_t(b)}, row / group_words, b, s / blocks, 1, scale);
                for (int64_t r = 0; r < rows; ++r) out[(i + r) * s + to.place[skip + r]] = to.coef[skip + r];
            }
            i += rows;
        }
    });
    return 0;
}

// ---- eigh_update ----------------------------------------------------------------------------------------------------

constexpr double unit = 0x1p-53;  // half of eps

inline int64_t exponent(double x) { return int64_t(bit_cast<uint64_t>(x) >> 52 & 0x7ff) - 1023; }
inline int64_t within(int64_t e, int64_t most) { return e < -most ? -most : e > most ? most : e; }
inline double power_of_two(int64_t e) { return bit_cast<double>(uint64_t(e + 1023) << 52); }

// y (rows, columns) <- x^T U for `columns` vectors of U's columns; x (count, rows).
template <int rows, int columns>
CURVK_INLINE inline void multiply_tile(const double* x, const double* U, int64_t ld, int64_t count, double* y) {
    Doubles sum[rows][columns] = {};
    for (int64_t i = 0; i < count; ++i)
        for (int c = 0; c < columns; ++c) {
            const Doubles u = load(U + i * ld + c * width);
            for (int r = 0; r < rows; ++r) sum[r][c] += x[i * rows + r] * u;
        }
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) Vector<double>::store(y + r * ld + c * width, sum[r][c]);
}

// The eigenvectors U of diag(pole) + w z z^T.
struct Turn {
    int64_t p, q;
    double c, s;
};

struct RankOne {
    int64_t k;
    int64_t turns = 0;
    int64_t order[most_poles];  // the column of V that pole i belongs to
    double pole[most_poles], x[most_poles];
    int64_t kept[most_poles], left[most_poles];  // of the poles; their columns before and after:
    int64_t column[most_poles], left_column[most_poles], place[most_poles], left_place[most_poles];
    Turn turn[most_poles];  // of columns
    double ratio[most_poles + padding], sign[most_poles + padding];
    Secular secular;

    // Decides what is left out; the others become poles of the secular equation.
    void deflate(double rho, double tolerance) {
        int64_t last = -1, lost = 0;
        const auto drop = [&](int64_t i) {
            left_column[lost] = order[i];
            left[lost++] = i;
        };
        const auto keep = [&](int64_t i) {
            column[secular.count] = order[i];
            kept[secular.count] = i;
            secular.pole[secular.count] = pole[i];
            secular.w[secular.count++] = rho * x[i] * x[i];
        };
        for (int64_t i = 0; i < k; ++i) {
            if (rho * magnitude(x[i]) <= tolerance) {
                drop(i);
                continue;
            }
            if (last >= 0) {
                const double gap = pole[i] - pole[last], square = x[i] * x[i] + x[last] * x[last];
                if (magnitude(gap * x[i] * x[last]) <= tolerance * square) {
                    const double length = x[i] < 0 ? -sqrt(square) : sqrt(square), c = x[i] / length, s = x[last] / length;
                    turn[turns++] = {order[last], order[i], c, s};
                    const double low = pole[last] * (c * c) + pole[i] * (s * s);
                    pole[i] = pole[last] * (s * s) + pole[i] * (c * c);
                    pole[last] = low;
                    x[i] = length;
                    drop(last);
                } else {
                    keep(last);
                }
            }
            last = i;
        }
        if (last >= 0) keep(last);
        for (int64_t j = secular.count; j < round_up(secular.count, padding); ++j)
            secular.pole[j] = 16, secular.w[j] = 0;
    }

    // z from the zeros, Loewner's product: z_i^2 = prod_j (zero_j - pole_i) / prod_(j != i) (pole_j - pole_i).
    void recompute() {
        const int64_t count = secular.count;
        const double *const a = secular.pole, *const from = secular.origin, *const at = secular.tau;
        for (int64_t i = 0; i < count; i += width) {
            Doubles own = {}, product = own + 1.0;
            for (int64_t l = 0; l < width; ++l) own[l] = double(i + l);
            const Doubles mine = load(a + i);
            for (int64_t j = 0; j < count; j += 4) {
                Doubles over = Doubles{} + 1.0, under = over;
                for (int64_t t = j; t < j + 4 && t < count; ++t) {
                    over *= (from[t] - mine) + at[t];
                    if (t < count - 1) under *= (double(t) < own ? Doubles{} + a[t] : Doubles{} + a[t + 1]) - mine;
                }
                product *= over / under;
            }
            Vector<double>::store(ratio + i, roots(absolute(product)));
        }
        for (int64_t i = 0; i < count; ++i) {
            sign[i] = x[kept[i]] < 0 ? -1 : 1;
            ratio[i] *= sign[i];
        }
        for (int64_t i = count; i < round_up(count, padding); ++i) ratio[i] = 0, sign[i] = 1;
    }

    void vectors(double* U, int64_t ld) const {
        const int64_t count = secular.count;
        for (int64_t j = 0; j < count; j += width) {
            const Doubles from = load(secular.origin + j), at = load(secular.tau + j);
            Doubles square = {};
            for (int64_t i = 0; i < count; i += 4) {
                Doubles gap[4];
                for (int64_t t = 0; t < 4; ++t) gap[t] = (from - secular.pole[i + t]) + at;
                invert(gap);
                for (int64_t t = 0; t < 4; ++t) {
                    const Doubles u = ratio[i + t] * gap[t];
                    square += u * u;
                    Vector<double>::store(U + (i + t) * ld + j, u);
                }
            }
            const Doubles scale = load(sign + j) / roots(square);
            for (int64_t i = 0; i < count; ++i) {
                double* const u = U + i * ld + j;
                Vector<double>::store(u, load(u) * scale);
            }
        }
    }

    // `rows` rows of V, in place.
    template <int rows>
    void rotate(double* V, const double* U, int64_t ld) const {
        const int64_t count = secular.count;
        double x[rows * most_poles], y[rows * (most_poles + padding)], aside[most_poles];
        for (int64_t t = 0; t < turns; ++t)
            for (int r = 0; r < rows; ++r) {
                double &p = V[r * k + turn[t].p], &q = V[r * k + turn[t].q];
                const double first = turn[t].c * p - turn[t].s * q;
                q = turn[t].c * q + turn[t].s * p;
                p = first;
            }
        for (int64_t i = 0; i < count; ++i)
            for (int r = 0; r < rows; ++r) x[i * rows + r] = V[r * k + column[i]];
        int64_t j = 0;
        for (; j + 2 * width <= ld; j += 2 * width) multiply_tile<rows, 2>(x, U + j, ld, count, y + j);
        if (j < ld) multiply_tile<rows, 1>(x, U + j, ld, count, y + j);
        for (int r = 0; r < rows; ++r) {
            double* const row = V + r * k;
            for (int64_t i = 0; i < k - count; ++i) aside[i] = row[left_column[i]];
            for (int64_t i = 0; i < count; ++i) row[place[i]] = y[r * ld + i];
            for (int64_t i = 0; i < k - count; ++i) row[left_place[i]] = aside[i];
        }
    }
};

// Sorts by insertion, for what is nearly in order.
inline void sort(const double* keys, int64_t* order, int64_t n) {
    for (int64_t i = 1; i < n; ++i) {
        const int64_t own = order[i];
        int64_t at = i;
        for (; at > 0 && keys[order[at - 1]] > keys[own]; --at) order[at] = order[at - 1];
        order[at] = own;
    }
}

int32_t eigh_update(const double* z, double* d, double* V, int64_t m, int64_t k, double rho) {
    double most_d = 0, most_z = 0, finite = 0;
    for (int64_t i = 0; i < k; ++i) {
        finite += (d[i] - d[i]) + (z[i] - z[i]);
        most_d = magnitude(d[i]) > most_d ? magnitude(d[i]) : most_d;
        most_z = magnitude(z[i]) > most_z ? magnitude(z[i]) : most_z;
    }
    RankOne s;
    s.k = k;
    // |z| <- 1, and d and rho to below 4, by powers of two.
    const int64_t lift = -within(exponent(most_z), 1021);
    double square = 0;
    for (int64_t i = 0; i < k; ++i) square += (z[i] * power_of_two(lift)) * (z[i] * power_of_two(lift));
    const double norm = sqrt(square), weight = magnitude(rho) * power_of_two(-lift) * square * power_of_two(-lift);
    finite += weight - weight;
    if (finite != 0) {
        for (int64_t i = 0; i < k; ++i) d[i] = Real<double>::nan;
        for (int64_t i = 0; i < m * k; ++i) V[i] = Real<double>::nan;
        return 0;
    }
    const int64_t down = -within(exponent(most_d > weight ? most_d : weight), 1021);
    const double sign = rho < 0 ? -1 : 1, shrunk = weight * power_of_two(down);
    double key[most_poles];
    for (int64_t i = 0; i < k; ++i) {
        key[i] = sign * (d[i] * power_of_two(down));
        s.order[i] = rho < 0 ? k - 1 - i : i;
    }
    sort(key, s.order, k);
    for (int64_t i = 0; i < k; ++i) {
        s.pole[i] = key[s.order[i]];
        s.x[i] = norm > 0 ? (z[s.order[i]] * power_of_two(lift)) / norm : 0.0;
    }
    const double largest = most_d * power_of_two(down) > shrunk ? most_d * power_of_two(down) : shrunk;
    s.deflate(shrunk, 8 * unit * largest);
    const int64_t count = s.secular.count, ld = round_up(count, padding);
    Memory memory(Memory::bytes<double>(round_up(count, 4) * ld));
    if (!memory) return CURVK_NO_MEMORY;
    double* const U = memory.take<double>(round_up(count, 4) * ld);
    s.secular.solve();
    s.recompute();
    s.vectors(U, ld);
    int64_t sequence[most_poles], after[most_poles];
    for (int64_t i = 0; i < k; ++i) {
        key[i] = sign * s.pole[i];
        sequence[i] = rho < 0 ? k - 1 - i : i;
    }
    for (int64_t i = 0; i < count; ++i) key[s.kept[i]] = sign * (s.secular.origin[i] + s.secular.tau[i]);
    sort(key, sequence, k);
    for (int64_t i = 0; i < k; ++i) {
        after[sequence[i]] = i;
        d[i] = key[sequence[i]] * power_of_two(-down);
    }
    for (int64_t i = 0; i < count; ++i) s.place[i] = after[s.kept[i]];
    for (int64_t i = 0; i < k - count; ++i) s.left_place[i] = after[s.left[i]];
    const int64_t work = count * count + 8 * k;
    for_ranges(m, 16 * elementwise_grain / work + 1, [&, U, V](int64_t begin, int64_t end) {
        int64_t i = begin;
        for (; i + 4 <= end; i += 4) s.rotate<4>(V + i * k, U, ld);
        for (; i < end; ++i) s.rotate<1>(V + i * k, U, ld);
    });
    return 0;
}

// ---- qr_update ------------------------------------------------------------------------------------------------------

struct Givens {
    double c = 1, s = 0;

    // The rotation that brings (a, b) to (length, 0).
    double find(double a, double b) {
        if (b == 0) return a;
        if (magnitude(a) >= magnitude(b)) {
            const double tangent = b / a, length = sqrt(1 + tangent * tangent);
            c = 1 / length;
            s = tangent * c;
            return a * length;
        }
        const double tangent = a / b, length = sqrt(1 + tangent * tangent);
        s = 1 / length;
        c = tangent * s;
        return b * length;
    }
    void apply(double* __restrict x, double* __restrict y, int64_t n) const {
        for (int64_t j = 0; j < n; ++j) {
            const double a = x[j], b = y[j];
            x[j] = c * a + s * b;
            y[j] = c * b - s * a;
        }
    }
};

constexpr int64_t tile_rows = 16;

// w <- Q^T x, in the rows' order
void multiply_transposed(const double* Q, const double* x, double* w, int64_t m, int64_t n) {
    for_ranges((n + lanes - 1) / lanes, 4 * elementwise_grain / (m * lanes + 1) + 1, [=](int64_t begin, int64_t end) {
        const int64_t first = begin * lanes, last = end * lanes < n ? end * lanes : n;
        double* __restrict const to = w;
        for (int64_t j = first; j < last; ++j) to[j] = 0;
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = first; j < last; ++j) to[j] += Q[i * n + j] * x[i];
    });
}

// x <- x - Q w
void subtract_product(const double* Q, const double* w, double* x, int64_t m, int64_t n) {
    for_ranges(m, 4 * elementwise_grain / n + 1, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) x[i] -= dot(Q + i * n, w, n);
    });
}

// `rows` rows of Q with the further column `beside`: up from the last column, then down from the first.
void rotate_columns(double* Q, const double* beside, int64_t rows, int64_t n, const Givens* up, const Givens* down,
                    double* __restrict x) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < n; ++j) x[j * tile_rows + r] = Q[r * n + j];
    double carry[tile_rows] = {};
    for (int64_t r = 0; r < rows; ++r) carry[r] = beside[r];
    for (int64_t j = n - 1; j >= 0; --j) {
        const double c = up[j].c, s = up[j].s;
        double* const own = x + j * tile_rows;
        for (int64_t r = 0; r < tile_rows; ++r) {
            const double a = own[r], b = carry[r];
            carry[r] = c * a + s * b;
            own[r] = c * b - s * a;  // of column j + 1
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        const double c = down[j].c, s = down[j].s;
        double* const own = x + j * tile_rows;
        for (int64_t r = 0; r < tile_rows; ++r) {
            const double a = carry[r], b = own[r];
            own[r] = c * a + s * b;
            carry[r] = c * b - s * a;
        }
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < n; ++j) Q[r * n + j] = x[j * tile_rows + r];
}

int32_t qr_update(const double* u, const double* v, double* Q, double* R, int64_t m, int64_t n) {
    Memory memory(Memory::bytes<double>(m) + 3 * Memory::bytes<double>(n) + 2 * Memory::bytes<Givens>(n));
    if (!memory) return CURVK_NO_MEMORY;
    double *const x = memory.take<double>(m), *const w = memory.take<double>(n), *const again = memory.take<double>(n);
    double* const last = memory.take<double>(n);
    Givens *const up = memory.take<Givens>(n), *const down = memory.take<Givens>(n);
    double largest = 0, finite = 0;
    for (int64_t i = 0; i < m; ++i) {
        finite += u[i] - u[i];
        largest = magnitude(u[i]) > largest ? magnitude(u[i]) : largest;
    }
    const int64_t lift = -within(exponent(largest), 1021);
    for (int64_t i = 0; i < m; ++i) x[i] = u[i] * power_of_two(lift);
    multiply_transposed(Q, x, w, m, n);
    for (int64_t j = 0; j < n; ++j) {
        finite += (w[j] - w[j]) + (v[j] - v[j]);
        for (int64_t i = 0; i <= j; ++i) finite += R[i * n + j] - R[i * n + j];
    }
    if (finite != 0) {
        for (int64_t i = 0; i < m * n; ++i) Q[i] = Real<double>::nan;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i; j < n; ++j) R[i * n + j] = Real<double>::nan;
        return 0;
    }
    if (largest == 0) return 0;
    subtract_product(Q, w, x, m, n);
    const double before = sqrt(dot(x, x, m));
    multiply_transposed(Q, x, again, m, n);
    subtract_product(Q, again, x, m, n);
    const double after = sqrt(dot(x, x, m));
    const bool apart = after > 0.5 * before;
    for (int64_t i = 0; i < m; ++i) x[i] = apart ? x[i] / after : 0.0;
    for (int64_t j = 0; j < n; ++j) w[j] += again[j];
    double corner = apart ? after : 0.0;
    for (int64_t i = n - 1; i >= 0; --i) {  // R becomes a Hessenberg matrix with a further row
        up[i] = Givens{};
        corner = up[i].find(w[i], corner);
        double* const below = i == n - 1 ? last : R + (i + 1) * n;
        if (i < n - 1) below[i] = 0;
        up[i].apply(R + i * n + i, below + i, n - i);
    }
    for (int64_t j = 0; j < n; ++j) R[j] += corner * (v[j] * power_of_two(-lift));
    for (int64_t i = 0; i < n; ++i) {
        double *const own = R + i * n + i, *const below = (i == n - 1 ? last : R + (i + 1) * n) + i;
        down[i] = Givens{};
        *own = down[i].find(*own, *below);
        if (*own < 0) *own = -*own, down[i].c = -down[i].c, down[i].s = -down[i].s;
        *below = 0;
        down[i].apply(own + 1, below + 1, n - i - 1);
    }
    int32_t failed = 0;
    for_ranges((m + tile_rows - 1) / tile_rows, 4 * elementwise_grain / (n * tile_rows) + 1, [&](int64_t begin, int64_t end) {
        Memory own(Memory::bytes<double>(n * tile_rows));
        if (!own) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        double* const tile = own.take<double>(n * tile_rows);
        for (int64_t i = begin * tile_rows; i < end * tile_rows && i < m; i += tile_rows)
            rotate_columns(Q + i * n, x + i, m - i < tile_rows ? m - i : tile_rows, n, up, down, tile);
    });
    return failed ? CURVK_NO_MEMORY : 0;
}

}  // namespace

int32_t curvk_qr_update_f64(const double* u, const double* v, double* Q, double* R, int64_t m, int64_t n) {
    return qr_update(u, v, Q, R, m, n);
}
int32_t curvk_eigh_update_f64(const double* z, double* d, double* V, int64_t m, int64_t k, double rho) {
    return eigh_update(z, d, V, m, k, rho);
}
int32_t curvk_sjlt_rows_f64(CURVK_SJLT_ROWS) { return sjlt_rows(out, n, s, blocks, seed, tensor, first_row); }
int32_t curvk_sjlt_f32(CURVK_SJLT(float)) {
    return sjlt<float>(A, out, n, d, s, blocks, seed, tensor, first_row);
}
int32_t curvk_sjlt_f64(CURVK_SJLT(double)) {
    return sjlt<double>(A, out, n, d, s, blocks, seed, tensor, first_row);
}

}  // namespace CURVK_LEVEL
