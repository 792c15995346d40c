#include "core/status.h"

#include "curvk.h"

namespace curvk {
namespace {
thread_local const char* last_message = "";
}

int32_t fail(int32_t status, const char* message) {
    last_message = message;
    return status;
}

}  // namespace curvk

const char* curvk_status_message() { return curvk::last_message; }
int32_t curvk_abi_version() { return 1; }
const char* curvk_version() { return CURVK_VERSION; }
