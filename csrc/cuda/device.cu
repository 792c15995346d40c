#if defined(CURVK_CUDA_EMULATOR)
#include "cuda/emulator/cuda_runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include <stdio.h>

#include "cuda/device.h"
#include "curvk_cuda.h"

namespace curvk {
namespace {
thread_local char last_message[512] = "";
}

int32_t device_failed(const char* what, int cuda_error) {
    if (cuda_error == cudaSuccess) return CURVK_OK;
    const auto error = cudaError_t(cuda_error);
    snprintf(last_message, sizeof last_message, "%s: CUDA says %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
    (void)cudaGetLastError();  // a launch that fails is no one else's error
    return CURVK_DEVICE_ERROR;
}

int32_t fail(int32_t status, const char* message) {
    snprintf(last_message, sizeof last_message, "%s", message);
    return status;
}

CurrentDevice::CurrentDevice(const char* what, int32_t device) : status(CURVK_OK), before_(-1) {
    int now = 0;
    status = device_failed(what, cudaGetDevice(&now));
    if (status || now == device) return;
    status = device_failed(what, cudaSetDevice(device));
    if (!status) before_ = now;
}

CurrentDevice::~CurrentDevice() {
    if (before_ >= 0) (void)cudaSetDevice(before_);
}

}  // namespace curvk

const char* curvk_cuda_status_message() { return curvk::last_message; }

int32_t curvk_cuda_emulated() {
#if defined(CURVK_CUDA_EMULATOR)
    return 1;
#else
    return 0;
#endif
}

int32_t curvk_cuda_versions(int32_t* driver, int32_t* runtime) {
    int versions[2] = {0, 0};
    int32_t status = curvk::device_failed("curvk_cuda_versions", cudaDriverGetVersion(&versions[0]));
    if (!status) status = curvk::device_failed("curvk_cuda_versions", cudaRuntimeGetVersion(&versions[1]));
    *driver = versions[0], *runtime = versions[1];
    return status;
}

int32_t curvk_cuda_device_count(int32_t* count) {
    int found = 0;
    const int32_t status = curvk::device_failed("curvk_cuda_device_count", cudaGetDeviceCount(&found));
    *count = status ? 0 : found;
    return status;
}

int32_t curvk_cuda_device(int32_t device, char* name, int64_t length, int32_t* capability, int64_t* bytes) {
    cudaDeviceProp properties;
    if (const int32_t status = curvk::device_failed("curvk_cuda_device", cudaGetDeviceProperties(&properties, device))) return status;
    snprintf(name, size_t(length), "%s", properties.name);
    *capability = 10 * properties.major + properties.minor;
    *bytes = int64_t(properties.totalGlobalMem);
    return CURVK_OK;
}

int32_t curvk_cuda_device_of(const void* address, int32_t* device) {
    cudaPointerAttributes attributes;
    if (const int32_t status = curvk::device_failed("curvk_cuda_device_of", cudaPointerGetAttributes(&attributes, address))) return status;
    *device = attributes.device;
    return CURVK_OK;
}

int32_t curvk_cuda_read(void* to, const void* from, int64_t bytes, int32_t device, void* stream) {
    const char* const name = "curvk_cuda_read";
    const curvk::CurrentDevice current(name, device);
    if (current.status) return current.status;
    const auto in = static_cast<cudaStream_t>(stream);
    const auto copied = cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDeviceToHost, in);
    return curvk::device_failed(name, copied ? copied : cudaStreamSynchronize(in));
}
