// Failures: an int32_t status and a message the calling thread keeps. Nothing here allocates or throws.
#pragma once

#include <cstdint>

namespace curvk {

// Remembers message, a string literal, and returns status.
int32_t fail(int32_t status, const char* message);

}  // namespace curvk
