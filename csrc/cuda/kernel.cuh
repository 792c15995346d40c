// What a CUDA kernel file includes. Its functions have the names and the arguments of the CPU's (include/curvk/<family>.h)
// and a stream; those of the binary interface, with the ranges checked and the device set, are generated around them.
// Element arithmetic is shared with the CPU's kernels or repeats their order of operations, and the files are compiled
// without contraction: the same bits.
#pragma once

#if defined(CURVK_CUDA_EMULATOR)
#include "cuda/emulator/cuda_runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include <initializer_list>
#include <type_traits>

#include "core/kernel.h"
#include "cuda/device.h"

#if defined(CURVK_EMULATED)
#define CURVK_GRID_CONSTANT(T) const T&  // else every thread's call copies it
#else
#define CURVK_GRID_CONSTANT(T) const __grid_constant__ T
#endif

namespace CURVK_LEVEL {
namespace {

constexpr int block_threads = 256;

// ---- launches ---------------------------------------------------------------------------------------------------------

template <class T>
struct Identity {
    using Type = T;
};

// Launches a kernel on a stream; the status names it where that fails.
template <class... P>
int32_t launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, void* stream,
               const typename Identity<std::decay_t<P>>::Type&... arguments) {
    if (blocks <= 0) return CURVK_OK;
    if (blocks > 0x7fffffff) return curvk::device_failed(name, cudaErrorInvalidConfiguration);
#if defined(CURVK_EMULATED)
    (void)stream;
    auto body = [&] { kernel(arguments...); };
    const auto run = [](void* context) { (*static_cast<decltype(body)*>(context))(); };
    return curvk::device_failed(name, curvk_emulator::run(dim3(unsigned(blocks)), dim3(unsigned(threads)), run, &body));
#else
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    return curvk::device_failed(name, cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)),
                                                dim3(unsigned(threads)), pointers, 0, static_cast<cudaStream_t>(stream)));
#endif
}

// Device memory for the length of a call, in the stream's order.
template <class T>
class Scratch {
   public:
    Scratch(const char* name, int64_t n, void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
        void* memory = nullptr;
        status = curvk::device_failed(name, cudaMallocAsync(&memory, size_t(n > 0 ? n : 1) * sizeof(T), stream_));
        data = status ? nullptr : static_cast<T*>(memory);
    }
    Scratch(const Scratch&) = delete;
    ~Scratch() {
        if (data) (void)cudaFreeAsync(data, stream_);
    }
    int32_t status;
    T* data;

   private:
    cudaStream_t stream_;
};

// ---- lists of arrays --------------------------------------------------------------------------------------------------

// Up to some hundred rows of a list, passed by value: no table to upload, nothing to keep alive, and a graph that captures
// the launch captures them. Words are addresses or integers, column by column; the first two columns are the number of
// the row's first chunk and the row's size. A launch takes up to 32,764 bytes of arguments (CUDA 12.1 and newer drivers).
struct Rows {
    static constexpr int64_t capacity = 3900;
    int32_t count, columns;
    uint64_t word[capacity];

    CURVK_HD uint64_t at(int column, int64_t row) const { return word[(column + 2) * count + row]; }
    template <class T>
    CURVK_HD T* address(int column, int64_t row, int64_t i = 0) const {
        return reinterpret_cast<T*>(at(column, row)) + i;
    }
    // The same where the column may be absent.
    template <class T>
    CURVK_HD T* optional(int column, int64_t row, int64_t i = 0) const {
        const uint64_t address = at(column, row);
        return address ? reinterpret_cast<T*>(address) + i : nullptr;
    }
};

// Elements [begin, begin + size) of a row: what one block, or a part of one, works on.
struct Part {
    int64_t row, begin, size;
};

CURVK_HD inline Part part_of(const Rows& rows, int64_t chunk, int64_t length) {
    int64_t low = 0, high = rows.count;  // the last row that begins at or before the chunk
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (int64_t(rows.word[middle]) <= chunk) low = middle;
        else high = middle;
    }
    const int64_t begin = (chunk - int64_t(rows.word[low])) * length, left = int64_t(rows.word[rows.count + low]) - begin;
    return {low, begin, left < length ? left : length};
}

// Calls f(rows, chunks, chunks before them) for launches that cover the list in chunks of `length` elements. A column is
// a table of addresses, null where it is absent, or of integers.
struct Column {
    const void* const* addresses;
    const int64_t* integers;
    Column(const int64_t* values) : addresses(nullptr), integers(values) {}
    template <class T>
    Column(T* const* table) : addresses(reinterpret_cast<const void* const*>(table)), integers(nullptr) {}
    template <class T>
    Column(const T* const* table) : addresses(reinterpret_cast<const void* const*>(table)), integers(nullptr) {}
};

template <class F>
int32_t for_rows(const int64_t* sizes, int64_t count, int64_t length, std::initializer_list<Column> columns, F f) {
    const int64_t width = int64_t(columns.size()) + 2, most = Rows::capacity / width;
    Rows rows;
    int64_t before = 0;
    for (int64_t r = 0; r < count;) {
        int64_t n = 0, chunks = 0;
        const int64_t taken = count - r < most ? count - r : most;
        rows.count = int32_t(taken);
        rows.columns = int32_t(width);
        for (; n < taken; ++n, ++r) {
            rows.word[n] = uint64_t(chunks);
            rows.word[taken + n] = uint64_t(sizes[r]);
            int64_t c = 2;
            for (const Column& column : columns) {
                uint64_t& word = rows.word[c++ * taken + n];
                word = column.addresses  ? reinterpret_cast<uint64_t>(column.addresses[r])
                       : column.integers ? uint64_t(column.integers[r])
                                         : 0;
            }
            chunks += (sizes[r] + length - 1) / length;
        }
        if (chunks)
            if (const int32_t status = f(rows, chunks, before)) return status;
        before += chunks;
    }
    return CURVK_OK;
}

// ---- elements -----------------------------------------------------------------------------------------------------------

// V neighbours: up to 16 bytes are one access.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
    T x[V];
    CURVK_HD T& operator[](int k) { return x[k]; }
    CURVK_HD const T& operator[](int k) const { return x[k]; }
};

template <int V, class T>
__device__ __forceinline__ Pack<T, V> load(const T* p, int64_t i) {
    return *reinterpret_cast<const Pack<T, V>*>(p + i);
}
// nvcc 13 makes single stores of a plain assignment where the address is not also loaded from; so the instruction is named.
// It is one for global memory.
template <int V, class T>
__device__ __forceinline__ void store(T* p, int64_t i, const Pack<T, V>& value) {
#if defined(__CUDA_ARCH__)
    constexpr int words = int(sizeof value / 4);
    if constexpr (V > 1 && words >= 1) {
        uint32_t w[words];
        memcpy(w, &value, sizeof value);
        const auto to = __cvta_generic_to_global(p + i);
        if constexpr (words == 1)
            asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(w[0]) : "memory");
        else if constexpr (words == 2)
            asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w[0]), "r"(w[1]) : "memory");
        else
            for (int k = 0; k < words; k += 4)
                asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to + 4 * k), "r"(w[k]), "r"(w[k + 1]),
                             "r"(w[k + 2]), "r"(w[k + 3])
                             : "memory");
        return;
    }
#elif defined(CURVK_EMULATED)
    curvk_emulator::demand_global(p + i);
#endif
    *reinterpret_cast<Pack<T, V>*>(p + i) = value;
}

template <int V, class... T>
__device__ __forceinline__ bool packs_aligned(const T*... p) {
    return ((reinterpret_cast<uint64_t>(p) % alignof(Pack<T, V>) == 0) && ...);  // a null pointer is aligned
}

template <int V>
struct Width {
    static constexpr int value = V;
};

// Calls f(width, i) so that a block's threads cover [0, n): V elements from i on where memory is aligned to that, else one.
// f's width is a constant of its type.
template <int V, class F>
__device__ __forceinline__ void for_packs(int64_t n, bool aligned, F f) {
    const int64_t whole = aligned ? n / V : 0;
    for (int64_t i = threadIdx.x; i < whole; i += blockDim.x) f(Width<V>{}, i * V);
    for (int64_t i = whole * V + threadIdx.x; i < n; i += blockDim.x) f(Width<1>{}, i);
}

constexpr int64_t chunk_elements = 4096;  // of an elementwise kernel's block: 16 a thread

}  // namespace
}  // namespace CURVK_LEVEL
