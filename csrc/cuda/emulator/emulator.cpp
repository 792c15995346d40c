#include "cuda/emulator/cuda_runtime.h"

#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace curvk_emulator {

thread_local Thread* current = nullptr;

namespace {

constexpr size_t stack_bytes = 256 * 1024;
constexpr int warp = 32;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Thread thread;
    bool done;
    int64_t barriers;   // passed or waited at
    int64_t exchanges;  // with its warp, given or waited at
};

// The block that runs on this host thread. Lanes exchange through two sets of places in turn: one is free again when all
// lanes have come to the exchange after the next.
struct Block {
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    Fiber* running = nullptr;
    int count = 0;
    void (*body)(void*) = nullptr;
    void* context = nullptr;
    std::vector<uint64_t> given[2];
    std::vector<char> said[2];  // at barriers, in turn as well
};
thread_local Block block;
thread_local int device = 0;

[[noreturn]] void die(const char* what) {
    fprintf(stderr, "CUDA emulator: %s\n", what);
    abort();
}

void yield() {
    Fiber* const self = block.running;
    swapcontext(&self->context, &block.scheduler);
}

void enter() {
    for (;;) {
        block.body(block.context);
        block.running->done = true;
        yield();
    }
}

void prepare(int threads) {
    for (int i = int(block.fibers.size()); i < threads; ++i) block.fibers.emplace_back();
    for (Fiber& f : block.fibers) {
        if (f.stack) continue;
        f.stack.reset(new char[stack_bytes]);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = stack_bytes;
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
}

int64_t progress(const Fiber& f) { return f.done + f.barriers + f.exchanges; }

struct Range {
    const char *begin, *end;
};

// The library's thread-local variables of this thread: `current`, and shared memory.
Range thread_locals() {
    const auto find = [](dl_phdr_info* info, size_t, void* found) {
        const auto* const begin = static_cast<const char*>(info->dlpi_tls_data);
        const auto* const known = reinterpret_cast<const char*>(&current);
        for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
            const char* const end = begin + info->dlpi_phdr[i].p_memsz;
            if (begin <= known && known < end) *static_cast<Range*>(found) = {begin, end};
        }
        return 0;
    };
    Range found = {};
    dl_iterate_phdr(find, &found);
    return found;
}

}  // namespace

cudaError_t run(dim3 blocks, dim3 threads, void (*body)(void*), void* context) {
    if (threads.x == 0 || threads.x > 1024 || threads.y != 1 || threads.z != 1 || blocks.x == 0) return cudaErrorInvalidConfiguration;
    if (block.running) die("a kernel launched a kernel");
    const int count = int(threads.x);
    if (int(block.fibers.size()) < count) {
        block.fibers.reserve(1024);  // contexts must not move
        prepare(count);
    }
    block.count = count;
    block.body = body;
    block.context = context;
    for (auto& given : block.given) given.resize(1024);
    for (auto& said : block.said) said.resize(1024);
    for (unsigned z = 0; z < blocks.z; ++z)
        for (unsigned y = 0; y < blocks.y; ++y)
            for (unsigned x = 0; x < blocks.x; ++x) {
                for (int i = 0; i < count; ++i) {
                    Fiber& f = block.fibers[size_t(i)];
                    f.done = false;
                    f.barriers = f.exchanges = 0;
                    f.thread = {dim3(unsigned(i)), dim3(x, y, z), threads, blocks};
                }
                for (int left = count; left > 0;) {
                    int64_t before = 0, after = 0;
                    for (int i = 0; i < count; ++i) before += progress(block.fibers[size_t(i)]);
                    for (int i = count - 1; i >= 0; --i) {  // last thread first: one that counts on an earlier one shows
                        Fiber& f = block.fibers[size_t(i)];
                        if (f.done) continue;
                        block.running = &f;
                        current = &f.thread;
                        swapcontext(&block.scheduler, &f.context);
                        left -= f.done;
                    }
                    for (int i = 0; i < count; ++i) after += progress(block.fibers[size_t(i)]);
                    if (left && before == after) die("threads wait for others that never come");
                }
            }
    block.running = nullptr;
    current = nullptr;
    return cudaSuccess;
}

void wait_for_block() {
    Fiber* const self = block.running;
    const int64_t mine = ++self->barriers;
    for (;;) {
        bool all = true;
        for (int i = 0; i < block.count && all; ++i) {
            const Fiber& f = block.fibers[size_t(i)];
            if (f.done && f.barriers < mine) die("a thread ended while others wait at __syncthreads");
            all = f.barriers >= mine;
        }
        if (all) return;
        yield();
    }
}

bool any_of_block(bool value) {
    Fiber* const self = block.running;
    auto& said = block.said[self->barriers % 2];
    said[size_t(self - block.fibers.data())] = value;
    wait_for_block();
    return std::find(said.begin(), said.begin() + block.count, char(1)) != said.begin() + block.count;
}

bool any_of_warp(uint32_t mask, bool value) {
    Fiber* const self = block.running;
    const int me = int(self - block.fibers.data());
    exchange(mask, value, me % warp);
    const auto& given = block.given[self->exchanges % 2];
    bool found = false;
    for (int l = 0; l < warp; ++l) found = found || ((mask >> l & 1) && given[size_t(me / warp * warp + l)]);
    return found;
}

uint64_t exchange(uint32_t mask, uint64_t value, int from) {
    Fiber* const self = block.running;
    const int me = int(self - block.fibers.data()), first = me / warp * warp;
    if (!(mask >> (me - first) & 1)) die("a lane's shuffle leaves out the lane itself");
    const int64_t mine = ++self->exchanges;
    auto& given = block.given[mine % 2];
    given[size_t(me)] = value;
    for (;;) {
        bool all = true;
        for (int l = 0; l < warp && all; ++l) {
            if (!(mask >> l & 1)) continue;
            if (first + l >= block.count) die("a shuffle waits for lanes that the block has not");
            const Fiber& f = block.fibers[size_t(first + l)];
            if (f.done && f.exchanges < mine) die("a lane ended while others wait in a shuffle");
            all = f.exchanges >= mine;
        }
        if (all) break;
        yield();
    }
    if (!(mask >> from & 1)) die("a shuffle reads a lane that takes no part");
    return given[size_t(first + from)];
}

void demand_global(const void* memory) {
    thread_local const Range shared = thread_locals();
    const auto* const p = static_cast<const char*>(memory);
    if (shared.begin <= p && p < shared.end) die("a store to global memory with an address in shared memory");
}

}  // namespace curvk_emulator

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
    return attributes->device = 0, cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = curvk_emulator::device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return cudaErrorInvalidDevice;
    return curvk_emulator::device = device, cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device < 0 || device > 1) return cudaErrorInvalidDevice;
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "emulated on the CPU");
    properties->major = 8;
    properties->multiProcessorCount = 1;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
    *memory = malloc(bytes + 1);
    if (!*memory) return cudaErrorMemoryAllocation;
    memset(*memory, 0xa5, bytes);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return free(memory), cudaSuccess; }
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    return memset(memory, value, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
           : error == cudaErrorMemoryAllocation   ? "out of memory"
           : error == cudaErrorInvalidDevice      ? "invalid device ordinal"
                                                  : "no error";
}
const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaError" : "cudaSuccess"; }
