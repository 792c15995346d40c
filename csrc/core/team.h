// The thread team. team.cpp is the only file that names OpenMP.
#pragma once

#include <cstdint>

namespace curvk {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls f on contiguous ranges that cover [0, n): one range per thread, none shorter than grain unless n is. Runs on the
// calling thread alone below two grains, inside another parallel region and in a forked child. Each range sees the
// default floating-point control word, whatever the caller has set.
void run_ranges(int64_t n, int64_t grain, RangeFunction f, void* context);

}  // namespace curvk
