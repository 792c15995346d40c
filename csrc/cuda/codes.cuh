// States of 8 bits in groups, and the walk of a warp through them. core/codes.h says what the codes are.
#pragma once

#include "core/codes.h"
#include "cuda/kernel.cuh"
#include "cuda/philox.cuh"

namespace CURVK_LEVEL {
namespace {

// A warp takes a unit of 1024 elements of a row, 128 or, where a scale is for 256, 256 in a step. A thread has four
// neighbours of each 128, so that 8 threads share a group, and what a group shares goes round by shuffles.
constexpr uint32_t all_lanes = 0xffffffffu;
constexpr int warp = 32, width = 4, span = warp * width;
constexpr int64_t sweep_chunk = block_threads / warp * unit;

template <class State>
constexpr int packs_of = State::coded && State::scaled > span ? 2 : 1;

// ---- the elements of a thread -----------------------------------------------------------------------------------------

// Hides that a number grows by a constant: the compiler would rather keep a pointer into each array and move them all,
// two operations each, than add the index to where the array begins, which is one.
__device__ __forceinline__ int opaque(int x) {
    asm("" : "+r"(x));
    return x;
}

// A thread's elements of a unit in one step. In a full step all of them exist, and memory is aligned for accesses to four
// at once; else those behind the end are read as 0 and not written.
template <bool full, int packs>
struct Share {
    static constexpr int count = packs * width;
    int first, size;  // the first element, and how many the unit has

    __device__ __forceinline__ int at(int k) const { return first + k / width * span + k % width; }
    __device__ __forceinline__ bool has(int k) const { return full || at(k) < size; }

    template <class T>
    __device__ __forceinline__ Pack<T, count> read(const T* unit) const {
        Pack<T, count> x;
        for (int q = 0; q < count; q += width) {
            if (full) {
                const auto pack = load<width>(unit, at(q));
                for (int k = 0; k < width; ++k) x[q + k] = pack[k];
            } else {
                for (int k = q; k < q + width; ++k) x[k] = has(k) ? unit[at(k)] : T(0);
            }
        }
        return x;
    }
    template <class T>
    __device__ __forceinline__ void write(T* unit, const Pack<T, count>& x) const {
        for (int q = 0; q < count; q += width) {
            if (full) {
                Pack<T, width> pack;
                for (int k = 0; k < width; ++k) pack[k] = x[q + k];
                store<width>(unit, at(q), pack);
            } else {
                for (int k = q; k < q + width; ++k)
                    if (has(k)) unit[at(k)] = x[k];
            }
        }
    }
};

// Calls f(share) for the steps of a warp in a unit of `size` elements, first the full ones.
template <int packs, class F>
__device__ __forceinline__ void for_steps(int size, bool aligned, F f) {
    constexpr int length = packs * span;
    const int own = int(threadIdx.x) % warp * width;
    int begin = 0;
    for (; aligned && begin + length <= size; begin += length) f(Share<true, packs>{opaque(begin + own), size});
    for (; begin < size; begin += length) f(Share<false, packs>{opaque(begin + own), size});
}

// A warp's unit: where its arrays begin and how many of its elements exist, maybe none.
struct Unit {
    int64_t row, begin;
    int size;
};

__device__ __forceinline__ Unit unit_of(const Rows& rows) {
    const Part part = part_of(rows, blockIdx.x, sweep_chunk);
    const int64_t begin = int64_t(threadIdx.x / warp) * unit, left = part.size - begin;
    return {part.row, part.begin + begin, int(left < unit ? left : unit)};
}

// ---- noise ------------------------------------------------------------------------------------------------------------

// The block of the unit's group that has the lane's number: a block takes some 60 integer operations, so 2 an element.
struct Dither {
    FourWords own;

    // The bits with which the elements round that array `word` of the group keeps.
    template <bool full, int packs>
    __device__ __forceinline__ Pack<uint32_t, packs * width> bits(int word, const Share<full, packs>& share) const {
        Pack<uint32_t, packs * width> out;
        for (int q = 0; q < packs; ++q) {
            const int first = share.at(q * width);
            const uint32_t w = __shfl_sync(all_lanes, own.w[word], first / int(group));
            for (int k = 0; k < width; ++k) out[q * width + k] = spread(w, first % int(group) + k);
        }
        return out;
    }
};

// ---- states -----------------------------------------------------------------------------------------------------------

// A column of states in a unit.
template <class State>
struct States {
    typename State::T* x;
    float* scale;
    const float* values;  // of a map's codes
};

template <bool is_signed>
__device__ __forceinline__ int32_t raw(Coded, uint8_t code, const float*) {
    return is_signed ? int32_t(int8_t(code)) : int32_t(code);
}
template <bool is_signed>
__device__ __forceinline__ uint32_t code(Coded, float x, float by, uint32_t random) {
    return Coded::code<is_signed>(x, by, random);
}

template <bool is_signed, class State, bool full, int packs, class S = typename State::S>
__device__ __forceinline__ Pack<S, packs * width> load_states(const States<State>& from, const Share<full, packs>& share) {
    constexpr int n = packs * width;
    const auto stored = share.read(from.x);
    Pack<S, n> x;
    if constexpr (State::coded) {
        const float scale = share.has(0) ? from.scale[share.first / int(State::scaled)] : 0.0f;
        for (int k = 0; k < n; ++k)
            x[k] = State::template value<is_signed>(raw<is_signed>(State{}, stored[k], from.values), scale);
    } else {
        for (int k = 0; k < n; ++k) x[k] = State::load(stored[k]);
    }
    return x;
}

template <bool is_signed, class State, bool full, int packs, int n, class S = typename State::S>
__device__ __forceinline__ void store_states(const States<State>& to, const Share<full, packs>& share, const Pack<S, n>& x,
                                             const Pack<uint32_t, n>& random) {
    Pack<typename State::T, n> stored;
    if constexpr (State::coded) {
        static_assert(State::scaled <= packs * span, "a group lies in one step of a warp");
        uint32_t top = 0;
        for (int k = 0; k < n; ++k) {
            const uint32_t bits = share.has(k) ? bit_cast<uint32_t>(magnitude(x[k])) : 0;
            top = bits > top ? bits : top;
        }
        for (int far = 1; far < State::scaled / n; far *= 2) {
            const uint32_t other = __shfl_xor_sync(all_lanes, top, far);
            top = other > top ? other : top;
        }
        float by;
        const float scale = State::scale_of(bit_cast<float>(top), by);
        const bool is_lost = State::is_lost(scale);
        const uint32_t kept = is_lost ? 0 : all_lanes;
        for (int k = 0; k < n; ++k) stored[k] = uint8_t(code<is_signed>(State{}, x[k], by, random[k]) & kept);
        if (share.first % int(State::scaled) == 0 && share.has(0))
            to.scale[share.first / int(State::scaled)] = is_lost ? bit_cast<float>(lost) : scale;
    } else {
        for (int k = 0; k < n; ++k) stored[k] = State::store(x[k], random[k]);
    }
    share.write(to.x, stored);
}

}  // namespace
}  // namespace CURVK_LEVEL
