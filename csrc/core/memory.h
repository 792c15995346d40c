// A kernel's scratch memory.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace CURVK_LEVEL {
namespace {

// Zeroed arrays, aligned to cache lines, from one allocation.
class Memory {
   public:
    explicit Memory(int64_t bytes) : data_(static_cast<char*>(aligned_alloc(64, size_t((bytes + 127) / 64 * 64)))) {
        if (data_) memset(data_, 0, size_t(bytes));
    }
    ~Memory() { free(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    explicit operator bool() const { return data_; }

    template <class T>
    T* take(int64_t n) {
        T* const p = reinterpret_cast<T*>(data_ + used_);
        used_ += bytes<T>(n);
        return p;
    }
    template <class T>
    static int64_t bytes(int64_t n) {
        return (n * int64_t(sizeof(T)) + 63) / 64 * 64;
    }

   private:
    char* data_;
    int64_t used_ = 0;
};

}  // namespace
}  // namespace CURVK_LEVEL
