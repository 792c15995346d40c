// Gram products. A tile is tile_rows rows of x against one group of packed columns: its inner products (or squared
// distances) are formed in registers, turned into kernel values in the L1 cache, and multiplied with W from there.
// Nothing of size n m exists, and no BLAS is needed.
#include "core/kernel.h"
#include "core/kernel_functions.h"
#include "core/memory.h"
#include "core/simd.h"

namespace CURVK_LEVEL {
#include "curvk/gram.h"
namespace {

constexpr int64_t tile_rows = vector_registers == 32 ? 12 : 6;  // 24 or 12 accumulators of 32 or 16 registers
template <class T>
constexpr int64_t panel = 64 / int64_t(sizeof(T));  // columns that lie side by side in `packed`
template <class T>
constexpr int64_t group = 2 * panel<T>;         // columns of a tile
constexpr int64_t chunk = 2048;                 // columns whose products are summed on their own
constexpr int64_t difference_limit = 12;        // up to this d distances are sums of squared differences
constexpr int64_t resident_bytes = 256 * 1024;  // of x that stay in the L2 cache beside a group of columns
constexpr int64_t narrow = 5;  // up to so many outputs W's columns meet the tile's rows; above, its rows the entries

constexpr int64_t single_rows = 3;  // at the end of x up to so many rows are formed one by one, which a tile would not repay

constexpr int64_t least_work = 2'000'000;  // multiplications per thread, some 20 us: less does not pay for a second one

template <class T>
constexpr T near = T(1) / T(1024);  // up to this share of the squared norms q is formed from differences

inline int64_t parts_of(int64_t n, int64_t length) { return (n + length - 1) / length; }

// ---- packing --------------------------------------------------------------------------------------------------------

template <class T>
int32_t pack(const T* z, T* packed, T* norms, T* center, int64_t m, int64_t d, int64_t centred) {
    constexpr int64_t P = panel<T>;
    for_ranges(d, 16, [=](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) center[k] = 0;
        if (!centred) return;
        // Blocks of columns, so that a row's cache line is read once for all of them.
        for (int64_t k0 = begin; k0 < end; k0 += 16) {
            const int64_t width = end - k0 < 16 ? end - k0 : 16;
            double sum[16] = {}, count[16] = {};
            for (int64_t j = 0; j < m; ++j)
                for (int64_t k = 0; k < width; ++k) {
                    const double v = double(z[j * d + k0 + k]);
                    const bool finite = is_finite(v);
                    sum[k] += finite ? v : 0;
                    count[k] += finite ? 1 : 0;
                }
            for (int64_t k = 0; k < width; ++k) {
                const double mean = count[k] > 0 ? sum[k] / count[k] : 0;
                center[k0 + k] = is_finite(double(T(mean))) ? T(mean) : T(0);
            }
        }
    });
    const int64_t panels = 2 * parts_of(m, group<T>);
    for_ranges(panels, 1 + 65536 / (P * (d + 1)), [=](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            T* const to = packed + p * d * P;
            double sums[P] = {};
            for (int64_t j = 0; j < P; ++j) {
                const int64_t row = p * P + j;
                if (row >= m) {
                    for (int64_t k = 0; k < d; ++k) to[k * P + j] = 0;
                    continue;
                }
                for (int64_t k = 0; k < d; ++k) to[k * P + j] = z[row * d + k] - center[k];
            }
            for (int64_t k = 0; k < d; ++k)
                for (int64_t j = 0; j < P; ++j) sums[j] += double(to[k * P + j]) * double(to[k * P + j]);
            for (int64_t j = 0; j < P; ++j) norms[p * P + j] = T(sums[j]);
        }
    });
    return 0;
}

// ---- a tile ---------------------------------------------------------------------------------------------------------

// Where column j of a group lies in its packed panels, for k = 0.
template <class T>
inline int64_t place(int64_t j, int64_t d) {
    return j / panel<T> * panel<T> * d + j % panel<T>;
}

// tile[r][j] <- sum over k of x z, or of (x - z)^2, for R rows. x is packed as [k][tile_rows].
template <class T, bool differences, int64_t R>
void inner(const T* __restrict x, const T* __restrict z, int64_t d, T* __restrict tile) {
    using V = Vector<T>;
    constexpr int64_t P = panel<T>;
    for (int64_t j = 0; j < group<T>; j += 2 * V::width) {
        const T *left = z + place<T>(j, d), *right = z + place<T>(j + V::width, d);
        typename V::Type sum[R][2] = {};
        for (int64_t k = 0; k < d; ++k) {
            const typename V::Type a = V::load(left + k * P), b = V::load(right + k * P);
#pragma GCC unroll 12
            for (int64_t r = 0; r < R; ++r) {
                const typename V::Type e = x[k * tile_rows + r] - typename V::Type{};
                if constexpr (differences) {
                    sum[r][0] = fused(e - a, e - a, sum[r][0]);
                    sum[r][1] = fused(e - b, e - b, sum[r][1]);
                } else {
                    sum[r][0] = fused(e, a, sum[r][0]);
                    sum[r][1] = fused(e, b, sum[r][1]);
                }
            }
        }
#pragma GCC unroll 12
        for (int64_t r = 0; r < R; ++r) {
            V::store(tile + r * group<T> + j, sum[r][0]);
            V::store(tile + r * group<T> + j + V::width, sum[r][1]);
        }
    }
}

// The same sums of squared differences for one row of the tile; the same bits as the tile's.
template <class T>
__attribute__((noinline)) void row_differences(const T* __restrict x, const T* __restrict z, int64_t d,
                                               T* __restrict q) {
    for (int64_t j = 0; j < group<T>; ++j) q[j] = 0;
    for (int64_t k = 0; k < d; ++k)
        for (int64_t half = 0; half < 2; ++half)
            for (int64_t j = 0; j < panel<T>; ++j) {
                const T e = x[k * tile_rows] - z[(half * d + k) * panel<T> + j];
                q[half * panel<T> + j] = fused(e, e, q[half * panel<T> + j]);
            }
}

// tile <- |x|^2 + |z|^2 - 2 tile, and squared differences where that cancels. NaN fails the comparison and goes there
// too: infinite rows are at infinite distance, as they are by differences. So does an infinite sum of the squared norms,
// for q may be finite.
template <class T>
void squared_distances(const T* x, const T* z, int64_t d, const T* x_norms, const T* z_norms, int64_t rows,
                       T* __restrict tile) {
    T largest = 0;
    for (int64_t j = 0; j < group<T>; ++j) largest = z_norms[j] > largest ? z_norms[j] : largest;
    for (int64_t r = 0; r < rows; ++r) {
        T* const row = tile + r * group<T>;
        const T norm = x_norms[r], bound = near<T> * (norm + largest);  // not below any entry's own
        int close = 0;
        for (int64_t j = 0; j < group<T>; ++j) {
            row[j] = fused(T(-2), row[j], norm + z_norms[j]);
            close |= !(row[j] > bound);
        }
        if (!close) continue;
        T exact[group<T>];
        row_differences(x + r, z, d, exact);
        for (int64_t j = 0; j < group<T>; ++j)
            if (!(row[j] > near<T> * (norm + z_norms[j]))) row[j] = exact[j];
    }
}

template <class T>
constexpr int64_t tile_size = tile_rows * group<T>;

// ---- the product with W ---------------------------------------------------------------------------------------------

// part[r][o] += sum over the tile's columns of tile[r][j] w[j][o], for R rows and U vectors of outputs.
template <class T, int64_t R, int64_t U>
void multiply(const T* __restrict tile, const T* __restrict w, int64_t columns, int64_t stride, T* __restrict part) {
    using V = Vector<T>;
    typename V::Type sum[R][U] = {};
    for (int64_t j = 0; j < columns; ++j) {
        typename V::Type row[U];
#pragma GCC unroll 4
        for (int64_t u = 0; u < U; ++u) row[u] = V::load(w + j * stride + u * V::width);
#pragma GCC unroll 12
        for (int64_t r = 0; r < R; ++r) {
            const typename V::Type e = tile[r * group<T> + j] - typename V::Type{};
#pragma GCC unroll 4
            for (int64_t u = 0; u < U; ++u) sum[r][u] = fused(e, row[u], sum[r][u]);
        }
    }
#pragma GCC unroll 12
    for (int64_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int64_t u = 0; u < U; ++u) {
            T* const to = part + r * stride + u * V::width;
            V::store(to, V::load(to) + sum[r][u]);
        }
}

// The same for few outputs: lanes of part[r][o] sum the columns of their own, w is [o][m padded].
template <class T>
void multiply_narrow(const T* __restrict tile, const T* __restrict w, int64_t stride, int64_t outputs, int64_t rows,
                     T* __restrict part) {
    using V = Vector<T>;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < outputs; ++o) {
            typename V::Type sum{};
#pragma GCC unroll 8
            for (int64_t j = 0; j < group<T>; j += V::width)
                sum = fused(V::load(tile + r * group<T> + j), V::load(w + o * stride + j), sum);
            T* const to = part + (r * outputs + o) * V::width;
            V::store(to, V::load(to) + sum);
        }
}

template <class T>
inline T fold_lanes(const T* lane) {
    T sum[Vector<T>::width];
    for (int64_t k = 0; k < Vector<T>::width; ++k) sum[k] = lane[k];
    for (int64_t half = Vector<T>::width / 2; half > 0; half /= 2)
        for (int64_t k = 0; k < half; ++k) sum[k] += sum[k + half];
    return sum[0];
}

// W as the products read it.
template <class T>
struct Weights {
    int64_t outputs, stride;  // stride: padded outputs, or the padded columns where `few`
    bool few;
    const T* data;

    int64_t slots() const { return few ? outputs * Vector<T>::width : stride; }  // of a row's partial sums
};

template <class T>
Weights<T> weights_of(int64_t m, int64_t c) {
    const bool few = c <= narrow;
    return {c, few ? parts_of(m, group<T>) * group<T> : parts_of(c, Vector<T>::width) * Vector<T>::width, few, nullptr};
}

template <class T>
void pack_weights(const T* w, T* to, int64_t m, const Weights<T>& o) {
    for_ranges(m, 4096, [=](int64_t begin, int64_t end) {
        if (o.few)
            for (int64_t j = begin; j < end; ++j)
                for (int64_t k = 0; k < o.outputs; ++k) to[k * o.stride + j] = w[j * o.outputs + k];
        else
            for (int64_t j = begin; j < end; ++j)
                for (int64_t k = 0; k < o.outputs; ++k) to[j * o.stride + k] = w[j * o.outputs + k];
    });
}

template <class T>
void multiply_tile(const T* tile, const Weights<T>& w, int64_t first, int64_t columns, int64_t rows, T* part) {
    constexpr int64_t V = Vector<T>::width;
    if (w.few) return multiply_narrow(tile, w.data + first, w.stride, w.outputs, rows, part);
    if (rows <= single_rows) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t o = 0; o < w.stride;) {  // as many sums at a time as hide their latency
                const T *const row = tile + r * group<T>, *const from = w.data + first * w.stride + o;
                T* const to = part + r * w.stride + o;
                const int64_t left = (w.stride - o) / V;
                if (left >= 4) multiply<T, 1, 4>(row, from, columns, w.stride, to);
                else if (left == 3) multiply<T, 1, 3>(row, from, columns, w.stride, to);
                else if (left == 2) multiply<T, 1, 2>(row, from, columns, w.stride, to);
                else multiply<T, 1, 1>(row, from, columns, w.stride, to);
                o += (left < 4 ? left : 4) * V;
            }
        return;
    }
    for (int64_t o = 0; o < w.stride;) {
        const T* const from = w.data + first * w.stride + o;
        const bool two = o + 2 * V <= w.stride;
        for (int64_t r = 0; r < tile_rows; r += 6) {
            if (two) multiply<T, 6, 2>(tile + r * group<T>, from, columns, w.stride, part + r * w.stride + o);
            else if (tile_rows % 12 == 0 && r == 0) multiply<T, 12, 1>(tile, from, columns, w.stride, part + o), r = 6;
            else multiply<T, 6, 1>(tile + r * group<T>, from, columns, w.stride, part + r * w.stride + o);
        }
        o += two ? 2 * V : V;
    }
}

// ---- the whole ------------------------------------------------------------------------------------------------------

template <class T>
struct Gram {
    const T *x, *packed, *norms, *center;
    T* keep;
    int64_t n, m, d;
    bool distances, differences;
    Values<T> values;
    Shape<T> shape;
    Weights<T> weights;

    // Rows [begin, end) of x, centred, as tiles of [k][tile_rows].
    void load(int64_t begin, int64_t end, T* to, T* squares) const {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t at = (i - begin) / tile_rows * tile_rows * d + (i - begin) % tile_rows;
            double sum = 0;
            for (int64_t k = 0; k < d; ++k) {
                const T e = x[i * d + k] - center[k];
                to[at + k * tile_rows] = e;
                sum += double(e) * double(e);
            }
            squares[i - begin] = T(sum);
        }
    }

    // tile <- s or q of the first `rows` of one tile of packed rows and the group of columns from j.
    void fill(const T* row, const T* square, int64_t j, int64_t rows, T* tile) const {
        const T* const z = packed + j * d;
        const bool direct = distances && differences;
        if (rows > single_rows)
            direct ? inner<T, true, tile_rows>(row, z, d, tile) : inner<T, false, tile_rows>(row, z, d, tile);
        else
            for (int64_t r = 0; r < rows; ++r)
                direct ? inner<T, true, 1>(row + r, z, d, tile + r * group<T>)
                       : inner<T, false, 1>(row + r, z, d, tile + r * group<T>);
        if (distances && !direct) squared_distances(row, z, d, square, norms + j, rows, tile);
    }

    // Of the tile from row i on: all its rows, or the few that are left.
    static int64_t rows_of(int64_t i, int64_t end) {
        return end - i <= single_rows ? end - i : tile_rows;
    }

    // part[row][slot] += sums over the columns [first, last), in groups that each tile of the rows meets in turn.
    void sweep(const T* rows, const T* squares, int64_t begin, int64_t end, int64_t first, int64_t last,
               T* part) const {
        alignas(64) T tile[tile_size<T>];
        for (int64_t j = first; j < last; j += group<T>) {
            const int64_t columns = last - j < group<T> ? last - j : group<T>;
            for (int64_t i = begin; i < end; i += tile_rows) {
                const int64_t at = i - begin;
                const int64_t formed = rows_of(i, end), count = end - i < tile_rows ? end - i : tile_rows;
                fill(rows + at * d, squares + at, j, formed, tile);
                values(tile, formed * group<T>, shape);
                if (keep)
                    for (int64_t r = 0; r < count; ++r)
                        memcpy(keep + (i + r) * m + j, tile + r * group<T>, size_t(columns) * sizeof(T));
                if (!part) continue;
                if (columns < group<T>)  // padding may have given infinities
                    for (int64_t r = 0; r < formed; ++r)
                        for (int64_t k = columns; k < group<T>; ++k) tile[r * group<T> + k] = 0;
                multiply_tile(tile, weights, j, columns, formed, part + at * weights.slots());
            }
        }
    }

    // out[i] <- or += the sums of rows [begin, end).
    void add(const T* part, int64_t begin, int64_t end, T* out, bool replace) const {
        const int64_t c = weights.outputs, width = Vector<T>::width;
        for (int64_t i = begin; i < end; ++i)
            for (int64_t o = 0; o < c; ++o) {
                const T* const from = part + (i - begin) * weights.slots() + (weights.few ? o * width : o);
                const T sum = weights.few ? fold_lanes(from) : *from;
                out[i * c + o] = replace ? sum : out[i * c + o] + sum;
            }
    }
};

// Each range of rows goes through all chunks of columns; or, where there are too few rows to share out, each range of
// chunks through all rows, and the chunks' sums are added afterwards. The sums are the same.
template <class T>
int32_t matvec(Gram<T> gram, const T* w, T* out, bool accumulate) {
    const int64_t n = gram.n, m = gram.m, d = gram.d;
    if (n == 0) return 0;
    Weights<T>& weights = gram.weights;
    const int64_t tiles = parts_of(n, tile_rows), chunks = m > 0 ? parts_of(m, chunk) : 1, slots = weights.slots();
    const int64_t padded = weights.few ? weights.outputs * weights.stride : m * weights.stride;
    const bool by_columns = tiles <= 4 && chunks > 1;
    const int64_t part_size = w ? tiles * tile_rows * slots : 0;
    Memory shared(Memory::bytes<T>(w ? padded : 0) + (by_columns ? chunks * Memory::bytes<T>(part_size) : 0));
    if (!shared) return CURVK_NO_MEMORY;
    if (w) {
        T* const to = shared.take<T>(padded);
        pack_weights(w, to, m, weights);
        weights.data = to;
    }
    const int64_t tile_work = tile_rows * (d + weights.outputs + 32);  // multiplications per column, about
    int32_t failed = 0;
    const auto fail = [&] { __atomic_store_n(&failed, 1, __ATOMIC_RELAXED); };
    if (by_columns) {
        T* const parts = w ? shared.take<T>(chunks * part_size) : nullptr;
        for_ranges(chunks, 1 + least_work / (tile_work * tiles * chunk), [&](int64_t from, int64_t to) {
            Memory own(Memory::bytes<T>(tiles * tile_rows * d) + Memory::bytes<T>(tiles * tile_rows));
            if (!own) return fail();
            T *const rows = own.take<T>(tiles * tile_rows * d), *const squares = own.take<T>(tiles * tile_rows);
            gram.load(0, n, rows, squares);
            for (int64_t k = from; k < to; ++k) {
                const int64_t last = (k + 1) * chunk < m ? (k + 1) * chunk : m;
                gram.sweep(rows, squares, 0, n, k * chunk, last, w ? parts + k * part_size : nullptr);
            }
        });
        if (!failed && w)
            for (int64_t k = 0; k < chunks; ++k) gram.add(parts + k * part_size, 0, n, out, k == 0 && !accumulate);
        return failed ? CURVK_NO_MEMORY : 0;
    }
    const int64_t fitting = resident_bytes / (tile_rows * (d + 1) * int64_t(sizeof(T)));
    const int64_t most = fitting < 1 ? 1 : fitting > 32 ? 32 : fitting;  // tiles
    for_ranges(tiles, 1 + least_work / (tile_work * (m + 1)), [&](int64_t from, int64_t to) {
        const int64_t block = to - from < most ? to - from : most, held = block * tile_rows;
        Memory own(Memory::bytes<T>(held * d) + Memory::bytes<T>(held) + Memory::bytes<T>(w ? held * slots : 0));
        if (!own) return fail();
        T *const rows = own.take<T>(held * d), *const squares = own.take<T>(held);
        T* const part = w ? own.take<T>(held * slots) : nullptr;
        for (int64_t t = from; t < to; t += block) {
            const int64_t begin = t * tile_rows;
            const int64_t until = (t + block < to ? t + block : to) * tile_rows, end = until < n ? until : n;
            gram.load(begin, end, rows, squares);
            for (int64_t k = 0; k < chunks; ++k) {
                const int64_t last = (k + 1) * chunk < m ? (k + 1) * chunk : m;
                if (w) memset(part, 0, size_t(held * slots) * sizeof(T));
                gram.sweep(rows, squares, begin, end, k * chunk, last, part);
                if (w) gram.add(part, begin, end, out, k == 0 && !accumulate);
            }
        }
    });
    return failed ? CURVK_NO_MEMORY : 0;
}

// Counts and finds of one row of x, from the columns [from, to) of its row in a tile of q.
template <class T>
void sift(const T* __restrict q, int64_t from, int64_t to, T low, T high, int64_t* counts, T* found, int64_t capacity) {
    int32_t below = 0, not_above = 0, under = 0, at_most = 0;
    for (int64_t j = from; j < to; ++j) {
        below += q[j] < low;
        not_above += q[j] <= low;
        under += q[j] < high;
        at_most += q[j] <= high;
    }
    int64_t at = counts[2] - counts[1];
    counts[0] += below, counts[1] += not_above, counts[2] += under, counts[3] += at_most;
    if (under == not_above) return;
    T inside[group<T>];
    int64_t count = 0;
    for (int64_t j = from; j < to; ++j) {  // without branches: where one is inside cannot be predicted
        inside[count] = q[j];
        count += (q[j] > low) & (q[j] < high);
    }
    for (int64_t k = 0; k < count && at < capacity; ++k) found[at++] = inside[k];
}

template <class T>
int32_t select(const Gram<T>& gram, int64_t* counts, T* found, int64_t first, T low, T high, int64_t capacity) {
    const int64_t n = gram.n, m = gram.m, d = gram.d, tiles = parts_of(n, tile_rows);
    int32_t failed = 0;
    // The first tiles have the most columns: each thread gets tiles from both ends.
    for_ranges((tiles + 1) / 2, 1 + least_work / (tile_rows * (m + 1) * (d + 16)), [&](int64_t from, int64_t to) {
        Memory own(Memory::bytes<T>(tile_rows * d) + Memory::bytes<T>(tile_rows));
        if (!own) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        T *const rows = own.take<T>(tile_rows * d), *const squares = own.take<T>(tile_rows);
        alignas(64) T tile[tile_size<T>];
        const auto one = [&](int64_t t) {
            const int64_t begin = t * tile_rows, end = begin + tile_rows < n ? begin + tile_rows : n;
            gram.load(begin, end, rows, squares);
            for (int64_t i = begin; i < end; ++i)
                for (int64_t k = 0; k < 4; ++k) counts[4 * i + k] = 0;
            for (int64_t j = (first + begin + 1) / group<T> * group<T>; j < m; j += group<T>) {
                gram.fill(rows, squares, j, tile_rows, tile);
                const int64_t columns = m - j < group<T> ? m - j : group<T>;
                for (int64_t i = begin; i < end; ++i) {
                    const int64_t after = first + i + 1 - j;
                    sift(tile + (i - begin) * group<T>, after > 0 ? after : 0, columns, low, high, counts + 4 * i,
                         found + i * capacity, capacity);
                }
            }
        };
        for (int64_t t = from; t < to; ++t) {
            one(t);
            if (tiles - 1 - t != t) one(tiles - 1 - t);
        }
    });
    return failed ? CURVK_NO_MEMORY : 0;
}

template <class T>
int32_t gram_matvec(const T* x, const T* packed, const T* norms, const T* center, const T* w, T* out, T* keep,
                    int64_t n, int64_t m, int64_t d, int64_t c, int64_t kernel, double scale, double shape,
                    int64_t degree, int64_t accumulate) {
    const bool distances = kernel >= first_of_distances;
    const Shape<T> o = {bounded<T>(-scale * unit_of(T())), bounded<T>(scale), bounded<T>(shape), degree};
    return matvec<T>({x, packed, norms, center, keep, n, m, d, distances, d <= difference_limit, values_of<T>(kernel),
                      o, weights_of<T>(m, c)},
                     w, out, accumulate != 0);
}

template <class T>
int32_t gram_select(const T* x, const T* packed, const T* norms, const T* center, T* found, int64_t* counts, int64_t n,
                    int64_t m, int64_t d, int64_t first, double low, double high, int64_t capacity) {
    const Gram<T> gram = {x, packed, norms, center, nullptr, n, m, d, true, d <= difference_limit, nullptr, {}, {}};
    return select<T>(gram, counts, found, first, T(low), T(high), capacity);
}

}  // namespace

#define GRAM(FMT, T)                                                                                             \
    int32_t curvk_gram_pack_##FMT(const T* z, T* packed, T* norms, T* center, int64_t m, int64_t d, int64_t centred) { \
        return pack(z, packed, norms, center, m, d, centred);                                                    \
    }                                                                                                            \
    int32_t curvk_gram_matvec_##FMT(const T* x, const T* packed, const T* norms, const T* center, const T* w, T* out, \
                                    T* keep, int64_t n, int64_t m, int64_t d, int64_t c, int64_t kernel, double scale, \
                                    double shape, int64_t degree, int64_t accumulate) {                          \
        return gram_matvec(x, packed, norms, center, w, out, keep, n, m, d, c, kernel, scale, shape, degree,     \
                           accumulate);                                                                          \
    }                                                                                                            \
    int32_t curvk_gram_select_##FMT(const T* x, const T* packed, const T* norms, const T* center, T* found,      \
                                    int64_t* counts, int64_t n, int64_t m, int64_t d, int64_t first, double low, \
                                    double high, int64_t capacity) {                                             \
        return gram_select(x, packed, norms, center, found, counts, n, m, d, first, low, high, capacity);        \
    }
GRAM(f32, float)
GRAM(f64, double)

}  // namespace CURVK_LEVEL
