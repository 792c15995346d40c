// Vectors of the level's width, for loops that the compiler does not tile by itself. Arithmetic is GCC's vector
// extension; the fused multiply-add is the one intrinsic. The level without one (x86-64-v2) multiplies and adds.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/lanes.h"

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace CURVK_LEVEL {
namespace {

#if !defined(__CUDACC__)

#if defined(__AVX512F__)
constexpr int64_t vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX__)
constexpr int64_t vector_bytes = 32, vector_registers = 16;
#elif defined(__ARM_NEON)
constexpr int64_t vector_bytes = 16, vector_registers = 32;
#else
constexpr int64_t vector_bytes = 16, vector_registers = 16;
#endif

template <class T>
struct Vector {
    typedef T Type __attribute__((vector_size(vector_bytes)));
    static constexpr int64_t width = vector_bytes / int64_t(sizeof(T));

    static Type load(const T* p) {
        Type v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(T* p, Type v) { memcpy(p, &v, sizeof v); }
};

using Floats = Vector<float>::Type;
using Doubles = Vector<double>::Type;

// a b + c, rounded once where the level can.
#if defined(__AVX512F__)
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Doubles fused(Doubles a, Doubles b, Doubles c) {
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline Doubles fused(Doubles a, Doubles b, Doubles c) {
    return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
inline Floats fused(Floats a, Floats b, Floats c) {
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline Doubles fused(Doubles a, Doubles b, Doubles c) {
    return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
inline Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#endif

#endif

// The same for one number, in loops that the compiler vectorises.
#if defined(__CUDACC__) || defined(CURVK_CUDA_EMULATOR)
CURVK_HD inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
CURVK_HD inline double fused(double a, double b, double c) { return fma(a, b, c); }
#elif defined(__FMA__) || defined(__aarch64__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float fused(float a, float b, float c) { return a * b + c; }
inline double fused(double a, double b, double c) { return a * b + c; }
#endif

}  // namespace
}  // namespace CURVK_LEVEL
