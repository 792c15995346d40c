#include "core/strided.h"

#include <atomic>
#include <cstring>

#include "core/team.h"
#include "curvk/base.h"

namespace curvk {
namespace {

// Walks elements [start, start + n) of a strided array in C order of the logical index, in runs along the last axis:
// f(i, offset, run) takes elements i .. i + run, whose bytes start at offset and lie the last stride apart.
template <class F>
void walk(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t start, int64_t n, F f) {
    const size_t last = shape.size() - 1;
    std::vector<int64_t> index(shape.size());
    int64_t offset = 0;
    for (size_t axis = shape.size(); axis-- > 0; start /= shape[axis]) {
        index[axis] = start % shape[axis];
        offset += index[axis] * strides[axis];
    }
    for (int64_t i = 0; i < n;) {
        const int64_t left = shape[last] - index[last], run = left < n - i ? left : n - i;
        f(i, offset, run);
        i += run;
        index[last] += run;
        offset += run * strides[last];
        for (size_t axis = last; index[axis] == shape[axis] && axis > 0; --axis) {
            offset += strides[axis - 1] - shape[axis] * strides[axis];
            index[axis] = 0;
            ++index[axis - 1];
        }
    }
}

template <class Word>
void copy_words(const std::vector<int64_t>& shape, const StridedArray& array, int64_t start, int64_t n, char* block,
                bool gather) {
    const int64_t stride = array.strides.back();
    walk(shape, array.strides, start, n, [&](int64_t i, int64_t offset, int64_t run) {
        char *here = block + i * int64_t(sizeof(Word)), *there = array.data + offset;
        if (stride == int64_t(sizeof(Word))) {
            std::memcpy(gather ? here : there, gather ? there : here, size_t(run) * sizeof(Word));
        } else if (gather) {
            for (int64_t k = 0; k < run; ++k) std::memcpy(here + k * int64_t(sizeof(Word)), there + k * stride, sizeof(Word));
        } else {
            for (int64_t k = 0; k < run; ++k) std::memcpy(there + k * stride, here + k * int64_t(sizeof(Word)), sizeof(Word));
        }
    });
}

void copy(const std::vector<int64_t>& shape, const StridedArray& array, int64_t start, int64_t n, char* block,
          bool gather) {
    switch (array.itemsize) {
        case 1: return copy_words<uint8_t>(shape, array, start, n, block, gather);
        case 2: return copy_words<uint16_t>(shape, array, start, n, block, gather);
        case 4: return copy_words<uint32_t>(shape, array, start, n, block, gather);
        default: return copy_words<uint64_t>(shape, array, start, n, block, gather);
    }
}

}  // namespace

int32_t run_strided(const std::vector<int64_t>& shape, const std::vector<StridedArray>& arrays, BlockFunction f,
                    void* context) {
    int64_t n = 1;
    for (const int64_t length : shape) n *= length;
    struct Job {
        const std::vector<int64_t>& shape;
        const std::vector<StridedArray>& arrays;
        BlockFunction f;
        void* context;
        int64_t n;
        std::atomic<int32_t> status;
    } job{shape, arrays, f, context, n, {CURVK_OK}};
    const int64_t blocks = (n + block_length - 1) / block_length;
    run_ranges(
        blocks, 4,
        [](void* data, int64_t begin, int64_t end) {
            Job& j = *static_cast<Job*>(data);
            std::vector<char> memory(j.arrays.size() * block_length * 8);
            std::vector<void*> tables(j.arrays.size());
            for (size_t a = 0; a < tables.size(); ++a)
                tables[a] = j.arrays[a].data ? memory.data() + a * block_length * 8 : nullptr;
            for (int64_t b = begin; b < end && j.status.load() == CURVK_OK; ++b) {
                const int64_t start = b * block_length, left = j.n - start, length = left < block_length ? left : block_length;
                for (size_t a = 0; a < tables.size(); ++a)
                    if (const StridedArray& array = j.arrays[a]; array.data && array.per)
                        tables[a] = array.data + start / array.per * array.itemsize;
                    else if (tables[a]) copy(j.shape, j.arrays[a], start, length, static_cast<char*>(tables[a]), true);
                if (const int32_t status = j.f(j.context, tables.data(), start, length)) {
                    j.status.store(status);
                    return;
                }
                for (size_t a = 0; a < tables.size(); ++a)
                    if (tables[a] && j.arrays[a].written && !j.arrays[a].per)
                        copy(j.shape, j.arrays[a], start, length, static_cast<char*>(tables[a]), false);
            }
        },
        &job);
    return job.status.load();
}

}  // namespace curvk
