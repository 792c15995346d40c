#include "cuda/kernel.cuh"

namespace CURVK_LEVEL {
#include "curvk/vmath.h"
namespace {

struct Exp {
    template <class T>
    CURVK_HD static T of(T x) {
        return exp_of(x);
    }
};
struct Log {
    template <class T>
    CURVK_HD static T of(T x) {
        return log_of(x);
    }
};

enum VmathColumn : int { column_x, column_out };

// Two accesses of 4 or 8 bytes an element.
template <class F, class T>
__global__ void __launch_bounds__(block_threads) each(CURVK_GRID_CONSTANT(Rows) rows) {
    const Part part = part_of(rows, blockIdx.x, chunk_elements);
    const T* const x = rows.address<const T>(column_x, part.row, part.begin);
    T* const out = rows.address<T>(column_out, part.row, part.begin);
    constexpr int most = 16 / int(sizeof(T));
    for_packs<most>(part.size, packs_aligned<most>(x, out), [=](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        auto values = load<V>(x, i);
        for (int k = 0; k < V; ++k) values[k] = F::of(values[k]);
        store<V>(out, i, values);
    });
}

template <class F, class T>
int32_t each_list(const char* name, CURVK_VMATH_LIST(T), void* stream) {
    return for_rows(sizes, count, chunk_elements, {x, out}, [&](const Rows& rows, int64_t chunks, int64_t) {
        return launch(name, each<F, T>, chunks, block_threads, stream, rows);
    });
}

}  // namespace

#define VMATH(FMT, T)                                                                                                         \
    int32_t curvk_exp_list_##FMT(CURVK_VMATH_LIST(T), void* stream) {                                                         \
        return each_list<Exp>("exp", x, out, sizes, count, stream);                                                           \
    }                                                                                                                         \
    int32_t curvk_log_list_##FMT(CURVK_VMATH_LIST(T), void* stream) {                                                         \
        return each_list<Log>("log", x, out, sizes, count, stream);                                                           \
    }
VMATH(f32, float)
VMATH(f64, double)

}  // namespace CURVK_LEVEL
