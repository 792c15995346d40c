#include "core/kernel.h"
#include "core/losses.h"
#include "core/memory.h"

// With few features w, A^-1 and the row at hand are copied to buffers whose rows are padded with zeros to whole groups of 8:
// with the usual 20 features, loops of that length take four times as long. Zeros change no bit of a sum.

namespace CURVK_LEVEL {
#include "curvk/online.h"
namespace {

enum Rule : int64_t { gradient, newton, published, kons, ridge };

constexpr int64_t group = 8, padded_below = 64;

// y <- y + a x
inline void add(double a, const double* __restrict x, double* __restrict y, int64_t n) {
    int64_t i = 0;
    for (; i + group <= n; i += group)
        for (int64_t l = 0; l < group; ++l) y[i + l] += a * x[i + l];
    for (; i < n; ++i) y[i] += a * x[i];
}

// `width` elements of u <- A^-1 phi, by rows, which are the columns.
template <int64_t width>
inline void solve_part(const double* __restrict inverse, const double* __restrict phi, double* __restrict u, int64_t k,
                       int64_t stride) {
    double sum[width] = {};
    for (int64_t j = 0; j < k; ++j)
        for (int64_t l = 0; l < width; ++l) sum[l] += phi[j] * inverse[j * stride + l];
    for (int64_t l = 0; l < width; ++l) u[l] = sum[l];
}

inline void solve(const double* inverse, const double* phi, double* u, int64_t k, int64_t stride) {
    int64_t i = 0;
    for (; i + 3 * group <= stride; i += 3 * group) solve_part<3 * group>(inverse + i, phi, u + i, k, stride);
    for (; i + group <= stride; i += group) solve_part<group>(inverse + i, phi, u + i, k, stride);
    for (; i < stride; ++i) solve_part<1>(inverse + i, phi, u + i, k, stride);
}

inline double beyond(double z, double clip) { return z > clip ? z - clip : z < -clip ? z + clip : 0; }

struct Learner {
    Rule rule;
    double lr, clip, curvature;
    int64_t k, stride;
    const double* phi;  // the row at hand
    double *u, *t;      // A^-1 phi, scratch

    // The prediction; under kons w is projected before it.
    double predict(double* w, const double* inverse) const {
        const double f = dot(w, phi, stride), excess = rule == kons ? beyond(f, clip) : 0;
        if (excess == 0) return f;  // nor where f is NaN
        solve(inverse, phi, u, k, stride);
        const double s = dot(phi, u, stride);
        if (!(s > 0)) return f;
        add(-excess / s, u, w, stride);
        return f - excess;
    }

    void learn(double* w, double* inverse, double g) const {
        if (rule == gradient) return add(-lr * g, phi, w, stride);
        solve(inverse, phi, u, k, stride);
        double s = dot(phi, u, stride);
        if (!(s > 0)) return;  // no feature is there: nothing to learn
        if (rule == ridge) {
            take_in(1, inverse, s);
            return add(-lr * (0.5 * g), u, w, stride);
        }
        if (rule != published) take_in(0.5 * curvature * g * g, inverse, s);
        double step = -lr * g;
        if (rule != kons) step -= beyond(dot(w, phi, stride) + step * s, clip) / (rule == published ? s + 1e-4 : s);
        add(step, u, w, stride);
        if (rule == published) take_in(lr * g * (lr * g), inverse, s);
    }

   private:
    // A <- A + a phi phi' in its inverse (Sherman & Morrison), and u and s = phi.u with it. With the root taken once the
    // update is symmetric to the bit.
    void take_in(double a, double* inverse, double& s) const {
        const double growth = 1 + a * s, factor = root(a / growth);
        for (int64_t i = 0; i < stride; ++i) t[i] = factor * u[i];
        for (int64_t i = 0; i < k; ++i) add(-t[i], t, inverse + i * stride, stride);
        for (int64_t i = 0; i < stride; ++i) u[i] /= growth;
        s /= growth;
    }
};

// Rows of k elements as rows of `stride`, padded with zeros, and back.
void pad(const double* from, double* to, int64_t rows, int64_t k, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < k; ++j) to[i * stride + j] = from[i * k + j];
        for (int64_t j = k; j < stride; ++j) to[i * stride + j] = 0;
    }
}
void strip(const double* from, double* to, int64_t rows, int64_t k, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j) to[i * k + j] = from[i * stride + j];
}

int32_t learn(CURVK_ONLINE_LEARN) {
    constexpr int32_t rule_argument = 11;
    if (!inverse && rule != gradient) return rule_argument;
    const int64_t groups = (k + group - 1) / group * group, stride = k < padded_below ? groups : k;
    const int64_t rows = rule == gradient ? 0 : c * k;
    const bool copied = stride != k;
    const auto bytes = Memory::bytes<double>;
    Memory memory(2 * bytes(stride) + bytes(c) + (copied ? bytes(stride) + bytes(c * stride) + bytes(rows * stride) : 0));
    if (!memory) return CURVK_NO_MEMORY;
    double *const u = memory.take<double>(stride), *const t = memory.take<double>(stride);
    double* const g = memory.take<double>(c);
    double *weights = w, *metric = inverse, *own_phi = nullptr;
    if (copied) {
        own_phi = memory.take<double>(stride);
        weights = memory.take<double>(c * stride);
        metric = memory.take<double>(rows * stride);
        pad(w, weights, c, k, stride);
        pad(inverse, metric, rows, k, stride);
    }
    Learner learner = {Rule(rule), lr, clip, curvature, k, stride, nullptr, u, t};
    const auto metric_of = [=](int64_t o) { return metric ? metric + o * k * stride : nullptr; };
    bool learned = false;
    int64_t row = 0, lossy = 0;
    for (; row < n; ++row) {
        if (copied) pad(phi + row * k, own_phi, 1, k, stride);
        learner.phi = copied ? own_phi : phi + row * k;
        const bool given = pending && row == 0;
        bool any = false;
        for (int64_t o = 0; o < c; ++o) {
            double& prediction = f[row * c + o];
            if (!given) prediction = learner.predict(weights + o * stride, metric_of(o));
            g[o] = slope(loss, y[row * c + o], prediction);
            if (!is_finite(g[o])) g[o] = 0;
            any = any || g[o] != 0;
        }
        if (!any) continue;
        if (!given && ++lossy == until) break;
        learned = true;
        for (int64_t o = 0; o < c; ++o)
            if (g[o] != 0) learner.learn(weights + o * stride, metric_of(o), g[o]);
    }
    if (copied && (learned || rule == kons)) strip(weights, w, c, k, stride);
    if (copied && learned) strip(metric, inverse, rows, k, stride);
    counts[0] = row;
    counts[1] = lossy;
    return 0;
}

}  // namespace

int32_t curvk_online_learn_f64(CURVK_ONLINE_LEARN) {
    return learn(phi, y, f, w, inverse, counts, n, k, c, loss, rule, lr, clip, curvature, until, pending);
}

}  // namespace CURVK_LEVEL
