#include "core/kernel.h"
#include "core/losses.h"
#include "core/memory.h"

namespace CURVK_LEVEL {
#include "curvk/budget.h"
namespace {

enum Rule : int64_t { append, rbp, forgetron, bpas, projectron, projectron_plus, bogd };

inline void add(double a, const double* __restrict x, double* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

inline void multiply(double a, double* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] *= a;
}

inline int64_t least(const double* x, int64_t n) {
    int64_t place = 0;
    for (int64_t i = 1; i < n; ++i)
        if (x[i] < x[place]) place = i;
    return place;
}

// The largest p in (0, 1] with a p^2 + b p <= room, for b >= 0 and room > 0: 1, or the one root in (0, 1).
inline double largest_share(double a, double b, double room) {
    if (a + b <= room) return 1;
    const double under = b * b + 4 * a * room;
    return 2 * room / (b + root(under > 0 ? under : 0));
}

struct Numbers {
    Rule rule;
    int64_t loss;
    double lr, C, threshold, decay, limit;
};

struct Expansion {
    const double *K, *G, *y, *u;
    double *f, *coef, *matrix, *sums;
    int64_t *placed, *rows, *counts;
    int64_t n, c, capacity;
    Numbers numbers;
    double *values, *solution, *step;  // scratch: (slots), (slots), (c)

    int64_t m, oldest, held = 0, width;  // slots in use, oldest slot, length of `placed`, slots at the start

    double* output(int64_t o) const { return coef + o * capacity; }

    // k of the row and the slots: the row of K, or a copy in which the slots of this call's rows have theirs.
    const double* values_of(int64_t t) const {
        const double* const before = K + t * width;
        if (held == 0) return before;
        for (int64_t s = 0; s < width; ++s) values[s] = before[s];
        const double* const among = G + t * n;
        for (int64_t i = 0; i < held; ++i) values[placed[i]] = among[rows[i]];
        return values;
    }

    bool full() const { return m == capacity; }
    int64_t random_slot(int64_t t) const {
        const int64_t slot = int64_t(u[t] * double(m));
        return slot < m ? slot : m - 1;
    }

    // Row t with the coefficients `step` goes into a slot, which may be the next free one.
    void put(int64_t t, int64_t slot) {
        int64_t at = held;
        if (slot < m)
            for (at = 0; at < held && placed[at] != slot;) ++at;
        placed[at] = slot;
        rows[at] = t;
        if (at == held) ++held;
        if (slot == m) ++m;
        for (int64_t o = 0; o < c; ++o) output(o)[slot] = step[o];
    }

    // Whether any output asks for an update.
    bool slopes(int64_t t) {
        bool any = false;
        for (int64_t o = 0; o < c; ++o) {
            step[o] = -numbers.lr * slope(numbers.loss, y[t * c + o], f[t * c + o]);
            any = any || step[o] != 0;
        }
        return any;
    }

    int64_t mistakes(int64_t t) {
        int64_t count = 0;
        for (int64_t o = 0; o < c; ++o) {
            const double target = y[t * c + o];
            const bool wrong = target * f[t * c + o] <= 0;
            step[o] = wrong ? target : 0;
            count += wrong;
        }
        return count;
    }

    void learn_forgetron(int64_t t, const double* k) {
        const int64_t wrong = mistakes(t);
        if (wrong == 0) return;
        sums[1] += double(wrong);
        int64_t slot = m;
        if (full()) {
            slot = oldest;
            oldest = oldest + 1 < m ? oldest + 1 : 0;
            double a = 0, b = 0;
            for (int64_t o = 0; o < c; ++o) {
                const double own = output(o)[slot], size = magnitude(own);
                const double there = dot(matrix + slot * capacity, output(o), m) + step[o] * k[slot];
                const double margin = own < 0 ? -there : there;
                a += size * size - 2 * size * margin;
                b += 2 * size;
            }
            const double share = largest_share(a, b, 0.46875 * sums[1] - sums[0]);
            sums[0] += share * (a * share + b);
            for (int64_t o = 0; o < c; ++o) {
                multiply(share, output(o), m);
                step[o] *= share;
            }
        }
        for (int64_t s = 0; s < m; ++s) matrix[slot * capacity + s] = matrix[s * capacity + slot] = k[s];
        matrix[slot * capacity + slot] = G[t * n + t];
        put(t, slot);
    }

    void learn_bpas(int64_t t, const double* k) {
        const double own = G[t * n + t];
        if (!(own > 0)) return;
        bool any = false;
        for (int64_t o = 0; o < c; ++o) {
            const double target = y[t * c + o], margin = 1 - target * f[t * c + o];
            const double size = margin / own < numbers.C ? margin / own : numbers.C;
            step[o] = margin > 0 ? size * target : 0;
            any = any || margin > 0;
        }
        if (!any) return;
        int64_t slot = m;
        if (full()) {
            for (int64_t s = 0; s < m; ++s) solution[s] = 0;
            for (int64_t o = 0; o < c; ++o)
                for (int64_t s = 0; s < m; ++s) solution[s] += output(o)[s] * output(o)[s];
            for (int64_t s = 0; s < m; ++s) solution[s] *= matrix[s] - k[s] * k[s] / own;
            slot = least(solution, m);
            for (int64_t o = 0; o < c; ++o) step[o] += output(o)[slot] * k[slot] / own;
        }
        put(t, slot);
        matrix[slot] = own;
    }

    // v <- L^-1 k
    void solve_forward(const double* k, double* v) const {
        for (int64_t s = 0; s < m; ++s) {
            const double* const row = matrix + s * capacity;
            v[s] = (k[s] - dot(row, v, s)) / row[s];
        }
    }

    // d <- L^-T d
    void solve_back(double* d) const {
        for (int64_t s = m; s-- > 0;) {
            const double* const row = matrix + s * capacity;
            d[s] /= row[s];
            add(-d[s], row, d, s);
        }
    }

    void learn_projectron(int64_t t, const double* k) {
        const bool wrong = mistakes(t) > 0;
        bool close = false;
        if (numbers.rule == projectron_plus)
            for (int64_t o = 0; o < c; ++o) {
                const double margin = y[t * c + o] * f[t * c + o];
                close = close || (margin > 0 && margin < 1);
            }
        if (!wrong && !close) return;
        const double own = G[t * n + t];
        double* const d = solution;
        solve_forward(k, d);
        const double seen = dot(d, d, m), rest = own - seen > 0 ? own - seen : 0;
        const double guard = 1e-10 * own, wanted = numbers.threshold * numbers.threshold;
        const bool joins = wrong && !full() && rest > (guard > wanted ? guard : wanted);
        if (joins) {
            memcpy(matrix + m * capacity, d, size_t(m) * sizeof(double));
            matrix[m * capacity + m] = root(rest);
        }
        if (close || !joins) solve_back(d);
        if (close && seen > 0)
            for (int64_t o = 0; o < c; ++o) {
                const double target = y[t * c + o], margin = target * f[t * c + o], lost = 1 - margin;
                const double gain = lost - root(rest) / numbers.threshold;
                if (!(margin > 0 && lost > 0 && gain > 0)) continue;
                double size = lost / seen;
                if (2 * gain / seen < size) size = 2 * gain / seen;
                add(size < 1 ? size * target : target, d, output(o), m);
            }
        if (joins)
            put(t, m);
        else if (wrong)
            for (int64_t o = 0; o < c; ++o)
                if (step[o] != 0) add(step[o], d, output(o), m);
    }

    void learn_bogd(int64_t t) {
        const bool any = slopes(t);
        double shrink = numbers.decay;
        if (any && full() && m > 1) shrink *= double(m) / double(m - 1);
        for (int64_t o = 0; o < c; ++o) multiply(shrink, output(o), m);
        if (!any) return;
        put(t, full() ? random_slot(t) : m);
        for (int64_t o = 0; o < c; ++o) {
            double most = 0;
            for (int64_t s = 0; s < m; ++s) most = magnitude(output(o)[s]) > most ? magnitude(output(o)[s]) : most;
            if (most > numbers.limit) multiply(numbers.limit / most, output(o), m);
        }
    }

    // False where the row would need a slot and there is none.
    bool learn(int64_t t, const double* k) {
        switch (numbers.rule) {
            case append:
            case rbp:
                if (!slopes(t)) return true;
                if (full() && numbers.rule == append) return false;
                put(t, full() ? random_slot(t) : m);
                return true;
            case forgetron: learn_forgetron(t, k); return true;
            case bpas: learn_bpas(t, k); return true;
            case bogd: learn_bogd(t); return true;
            default: learn_projectron(t, k); return true;
        }
    }

    void run() {
        int64_t t = 0;
        for (; t < n; ++t) {
            const double* const k = values_of(t);
            double off = 0;  // 0 for finite predictions
            for (int64_t o = 0; o < c; ++o) {
                const double value = dot(k, output(o), m);
                f[t * c + o] = value;
                off += value - value;
            }
            if (off == 0 && !learn(t, k)) break;
        }
        counts[0] = m;
        counts[1] = oldest;
        counts[2] = t;
        counts[3] = held;
    }
};

int32_t learn(CURVK_BUDGET_LEARN) {
    const bool solves = rule == bpas || rule == projectron || rule == projectron_plus;
    const int64_t values = n > 1 ? capacity : 0, solution = solves ? capacity : 0;
    Memory memory(Memory::bytes<double>(values) + Memory::bytes<double>(solution) + Memory::bytes<double>(c));
    if (!memory) return CURVK_NO_MEMORY;
    Expansion expansion{K,      G,      y, u, f,        coef, matrix, sums, placed, rows, counts, n, c, capacity,
                        {Rule(rule), loss, lr, C, threshold, decay, limit}, memory.take<double>(values),
                        memory.take<double>(solution), memory.take<double>(c), counts[0], counts[1], 0, counts[0]};
    expansion.run();
    return 0;
}

int32_t predict(CURVK_BUDGET_PREDICT) {
    const int64_t grain = 1 + elementwise_grain / (1 + m * c);
    for_ranges(n, grain, [=](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t o = 0; o < c; ++o) f[t * c + o] = dot(K + t * m, coef + o * capacity, m);
    });
    return 0;
}

}  // namespace

int32_t curvk_budget_learn_f64(CURVK_BUDGET_LEARN) {
    return learn(K, G, y, u, f, coef, matrix, sums, placed, rows, counts, n, c, capacity, rule, loss, lr, C, threshold,
                 decay, limit);
}
int32_t curvk_budget_predict_f64(CURVK_BUDGET_PREDICT) { return predict(K, coef, f, n, m, c, capacity); }

}  // namespace CURVK_LEVEL
