#include "runtime/errors.h"
#include "common/api.h"
#include "common/settings.h"
#include <atomic>
#include <mutex>

namespace sim {
namespace {

std::atomic<int> sticky{0};
std::mutex message_mutex;
std::string message;
thread_local int last_error = 0;

struct ErrorText {
  int code;
  const char *runtime_name, *driver_name, *text;
};
const ErrorText error_texts[] = {
    {0, "cudaSuccess", "CUDA_SUCCESS", "no error"},
    {1, "cudaErrorInvalidValue", "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "cudaErrorInitializationError", "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {9, "cudaErrorInvalidConfiguration", "CUDA_ERROR_INVALID_CONFIGURATION", "invalid configuration argument"},
    {17, "cudaErrorInvalidDevicePointer", "CUDA_ERROR_INVALID_DEVICE_POINTER", "invalid device pointer"},
    {98, "cudaErrorInvalidDeviceFunction", "CUDA_ERROR_INVALID_FUNCTION", "invalid device function"},
    {100, "cudaErrorNoDevice", "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "cudaErrorInvalidDevice", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "cudaErrorInvalidKernelImage", "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "cudaErrorDeviceUninitialized", "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "cudaErrorNoKernelImageForDevice", "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {218, "cudaErrorInvalidPtx", "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {301, "cudaErrorFileNotFound", "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {400, "cudaErrorInvalidResourceHandle", "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "cudaErrorSymbolNotFound", "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "cudaErrorNotReady", "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "cudaErrorLaunchOutOfResources", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {702, "cudaErrorLaunchTimeout", "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {704, "cudaErrorPeerAccessAlreadyEnabled", "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
     "peer access is already enabled"},
    {710, "cudaErrorAssert", "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {716, "cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "cudaErrorNotSupported", "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "cudaErrorStreamCaptureUnsupported", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {999, "cudaErrorUnknown", "CUDA_ERROR_UNKNOWN", "unknown error"}};
const ErrorText *find_error(int code) {
  for (const auto &e : error_texts)
    if (e.code == code) return &e;
  return nullptr;
}

}  // namespace

int result(int error) {
  if (error && error != NOT_READY) last_error = error;
  return error;
}
int sticky_error() { return sticky; }
void set_message(const std::string &text) {
  {
    std::lock_guard<std::mutex> lock(message_mutex);
    message = text;
  }
  say("%s", text.c_str());
}
void set_sticky_error(int code, const std::string &text) {
  set_message(text);
  sticky = code;
}

}  // namespace sim

using namespace sim;

API const char *cudasim_last_message() {
  static thread_local std::string copy;  // another thread may change the message while the caller reads
  std::lock_guard<std::mutex> lock(message_mutex);
  copy = message;
  return copy.c_str();
}
API void cudasim_clear_error() {
  std::lock_guard<std::mutex> lock(message_mutex);
  sticky = 0;
  last_error = 0;
  message.clear();
}
API void cudasim_warn(const char *text) { say("%s", text); }

API const char *sim_cudaGetErrorName(int code) {
  const auto *e = find_error(code);
  return e ? e->runtime_name : "unrecognized error code";
}
API const char *sim_cudaGetErrorString(int code) {
  const auto *e = find_error(code);
  return e ? e->text : "unrecognized error code";
}
API int sim_cudaPeekAtLastError() { return sticky ? (int)sticky : last_error; }
API int sim_cudaGetLastError() {
  const int e = sim_cudaPeekAtLastError();
  last_error = 0;
  return e;
}
API int cuGetErrorName(int code, const char **name) {
  const auto *e = find_error(code);
  *name = e ? e->driver_name : "CUDA_ERROR_UNKNOWN";
  return e ? SUCCESS : INVALID_VALUE;
}
API int cuGetErrorString(int code, const char **text) {
  const auto *e = find_error(code);
  *text = e ? e->text : "unknown error";
  return e ? SUCCESS : INVALID_VALUE;
}
