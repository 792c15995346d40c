// Devices and failures of the CUDA backend; no CUDA header, so that generated code can include it.
#pragma once

#include <stdint.h>

#define CURVK_DEVICE_ERROR (-2)

namespace curvk {

// The status of a CUDA call: 0, or CURVK_DEVICE_ERROR and a message that names `what`.
int32_t device_failed(const char* what, int cuda_error);

// Makes a device the calling thread's current one while it lives.
class CurrentDevice {
   public:
    CurrentDevice(const char* what, int32_t device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    int32_t status;

   private:
    int before_;
};

}  // namespace curvk
