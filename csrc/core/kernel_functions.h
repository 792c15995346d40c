// Kernel functions of inner products and squared distances, as curvk/gram.h numbers them.
#pragma once

#include "core/kernel.h"
#include "core/simd.h"

namespace CURVK_LEVEL {
namespace {

// 2^y for y <= 0, with 2^0 = 1; 0 below -126.5. The polynomial has relative error 2^-25.9 and constant term 1.
CURVK_HD inline float shrink(float y) {
    constexpr float rounder = 0x1.8p23f + 127;  // leaves y's integer part, biased as an exponent, in the low bits
    const float bounded = y < -127 ? -127 : y;  // whose exponent's bits are those of 0; a NaN stays
    const float shifted = bounded + rounder;
    const float f = bounded - (shifted - rounder);
    float p = 0x1.41fbbcp-13f;
    p = fused(p, f, 0x1.5f3e52p-10f);
    p = fused(p, f, 0x1.3b2d4cp-7f);
    p = fused(p, f, 0x1.c6aee8p-5f);
    p = fused(p, f, 0x1.ebfbdcp-3f);
    p = fused(p, f, 0x1.62e43p-1f);
    p = fused(p, f, 1.0f);
    return p * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
}
constexpr double unit_of(float) { return 0x1.71547652b82fep+0; }  // the exponent's unit: log2(e), or 1 for e^y

CURVK_HD inline double shrink(double y) { return y < -708 ? 0 : exp_of(y); }
constexpr double unit_of(double) { return 1; }

template <class T>
struct Shape {
    T rate;    // minus scale, in the exponent's unit
    T scale, shape;
    int64_t degree;
};

// Rounded to T, no further than its largest number: an infinite scale would make k(x, x) a NaN.
template <class T>
T bounded(double x) {
    constexpr double largest = sizeof(T) == 4 ? double(__FLT_MAX__) : __DBL_MAX__;
    return T(x < -largest ? -largest : x > largest ? largest : x);
}

// Kernel values of the first `size` elements of a tile, from s or q. Plain loops: the compiler vectorises them.
template <class T>
using Values = void (*)(T* __restrict tile, int64_t size, const Shape<T>& o);

template <class T>
CURVK_HD void as_it_is(T* __restrict, int64_t, const Shape<T>&) {}

template <class T>
CURVK_HD void polynomial(T* __restrict tile, int64_t size, const Shape<T>& o) {
    for (int64_t i = 0; i < size; ++i) {
        const T base = fused(o.scale, tile[i], o.shape);
        T value = 1;
        for (int64_t k = 0; k < o.degree; ++k) value *= base;
        tile[i] = value;
    }
}

template <class T>
CURVK_HD void gaussian(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T rate = o.rate;
    for (int64_t i = 0; i < size; ++i) tile[i] = shrink(rate * tile[i]);
}

template <class T>
CURVK_HD void laplacian(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T rate = o.rate;
    for (int64_t i = 0; i < size; ++i) tile[i] = shrink(rate * root(tile[i]));
}

template <class T>
CURVK_HD void matern32(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T rate = o.rate, scale = o.scale;
    for (int64_t i = 0; i < size; ++i) {
        const T distance = root(tile[i]), decay = shrink(rate * distance);
        tile[i] = decay == 0 ? T(0) : fused(scale, distance, T(1)) * decay;  // not infinity times 0
    }
}

template <class T>
CURVK_HD void matern52(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T rate = o.rate, scale = o.scale;
    for (int64_t i = 0; i < size; ++i) {
        const T distance = root(tile[i]), r = scale * distance, decay = shrink(rate * distance);
        tile[i] = decay == 0 ? T(0) : fused(r, fused(r, T(1) / T(3), T(1)), T(1)) * decay;
    }
}

template <class T>
CURVK_HD void rational_quadratic(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T scale = o.scale, shape = o.shape;
    for (int64_t i = 0; i < size; ++i) {
        const T z = scale * tile[i], one_z = T(1) + z;
        // What the sum lost, as a term of its logarithm: a large shape multiplies it.
        const T lost = one_z < Real<T>::infinity ? (z - (one_z - T(1))) / one_z : T(0);
        tile[i] = exp_of(-shape * (log_of(one_z) + lost));
    }
}

template <class T>
CURVK_HD void imq(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T scale = o.scale;
    for (int64_t i = 0; i < size; ++i) tile[i] = T(1) / root(fused(scale, tile[i], T(1)));
}

template <class T>
CURVK_HD void exponent(T* __restrict tile, int64_t size, const Shape<T>& o) {
    const T rate = o.rate, shape = o.shape;
    for (int64_t i = 0; i < size; ++i) tile[i] = shrink(rate * exp_of(shape * log_of(tile[i])));
}

template <class T>
CURVK_HD void distance(T* __restrict tile, int64_t size, const Shape<T>&) {
    for (int64_t i = 0; i < size; ++i) tile[i] = root(tile[i]);
}

constexpr int64_t first_of_distances = 2;

template <class T>
Values<T> values_of(int64_t kernel) {
    switch (kernel) {  // a table of addresses would need relocations in every level's objects
        case 1: return polynomial<T>;
        case 2: return gaussian<T>;
        case 3: return laplacian<T>;
        case 4: return matern32<T>;
        case 5: return matern52<T>;
        case 6: return rational_quadratic<T>;
        case 7: return imq<T>;
        case 8: return exponent<T>;
        case 10: return distance<T>;
        default: return as_it_is<T>;
    }
}

}  // namespace
}  // namespace CURVK_LEVEL
