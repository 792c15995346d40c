// CUDA's language and runtime on the CPU, as far as the files in csrc/cuda use them: a launch runs its blocks one after
// the other and a block's threads as fibers that change at barriers and shuffles. It checks what kernels compute, where they read and
// write, and that all threads meet at a barrier; it knows nothing of memory order, occupancy or speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <cstddef>
#include <type_traits>

#define CURVK_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// ---- the runtime --------------------------------------------------------------------------------------------------------

typedef int cudaError_t;
typedef void* cudaStream_t;
enum : int { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorMemoryAllocation = 2, cudaErrorInvalidDevice = 101 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};

struct cudaPointerAttributes {
    int device;
};
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);

// ---- threads ------------------------------------------------------------------------------------------------------------

namespace curvk_emulator {

struct Thread {
    dim3 thread_index, block_index, block_size, grid_size;
};
extern thread_local Thread* current;

// Runs body for every thread of every block.
cudaError_t run(dim3 blocks, dim3 threads, void (*body)(void*), void* context);

void wait_for_block();
bool any_of_block(bool value);  // waits, too
bool any_of_warp(uint32_t mask, bool value);
// Gives a value to the lanes of the warp named in mask, all of which must come here, and takes that of lane `from`.
uint64_t exchange(uint32_t mask, uint64_t value, int from);
// Dies of an address in shared memory, which an instruction for global memory must not get.
void demand_global(const void* memory);

template <class T>
T exchanged(uint32_t mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "a lane gives at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(mask, bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline int lane() { return int(current->thread_index.x % 32); }
// Threads are fibers of one block at a time with one-dimensional indices; a warp is 32 neighbours.

}  // namespace curvk_emulator

#define threadIdx (curvk_emulator::current->thread_index)
#define blockIdx (curvk_emulator::current->block_index)
#define blockDim (curvk_emulator::current->block_size)
#define gridDim (curvk_emulator::current->grid_size)

inline void __syncthreads() { curvk_emulator::wait_for_block(); }
inline int __syncthreads_or(int value) { return curvk_emulator::any_of_block(value != 0); }
inline int __any_sync(uint32_t mask, int value) { return curvk_emulator::any_of_warp(mask, value != 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { curvk_emulator::exchange(mask, 0, curvk_emulator::lane()); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32) {
    const int lane = curvk_emulator::lane();
    return curvk_emulator::exchanged(mask, value, lane - lane % width + from % width);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
    const int lane = curvk_emulator::lane(), from = lane ^ bits;
    return curvk_emulator::exchanged(mask, value, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32) {
    const int lane = curvk_emulator::lane(), from = lane + int(by);
    return curvk_emulator::exchanged(mask, value, from / width == lane / width ? from : lane);
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t{a} * b) >> 32); }
