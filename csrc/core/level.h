// The SIMD level in force. Generated dispatchers read it once per call; set_simd is one atomic store.
#pragma once

#include <atomic>
#include <cstdint>

namespace curvk {

extern std::atomic<int32_t> active_level;

inline int32_t level() { return active_level.load(std::memory_order_relaxed); }

}  // namespace curvk
