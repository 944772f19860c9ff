// The device that CuPy sees: versions, attributes, limits.
#include "common/api.h"
#include "common/settings.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/queue.h"
#include <cstdio>
#include <cstring>
#include <driver_types.h>

using namespace sim;

namespace {

constexpr int CUDA_VERSION_SHOWN = 13000;
constexpr int THREADS = 1024, GRID_X = 2147483647, GRID_YZ = 65535, WARP_SIZE = 32;
constexpr int SHARED_BYTES = 49152, SHARED_BYTES_OPTIN = 65536, CONSTANT_BYTES = 65536, REGISTERS = 65536;
constexpr int BLOCKS_PER_MULTIPROCESSOR = 16, L2_BYTES = 1 << 20, TEXTURE_ALIGNMENT = 512, CLOCK_KHZ = 1000000;

thread_local int current_device = 0;

bool is_device(int d) { return d >= 0 && d < device_count(); }

int attribute(int a) {
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
    case cudaDevAttrMaxThreadsPerMultiProcessor: return THREADS;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return GRID_X;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return GRID_YZ;
    case cudaDevAttrMaxSharedMemoryPerBlock: return SHARED_BYTES;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return SHARED_BYTES_OPTIN;
    case cudaDevAttrTotalConstantMemory: return CONSTANT_BYTES;
    case cudaDevAttrWarpSize: return WARP_SIZE;
    case cudaDevAttrMaxPitch: return 2147483647;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return REGISTERS;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate: return CLOCK_KHZ;
    case cudaDevAttrTextureAlignment: return TEXTURE_ALIGNMENT;
    case cudaDevAttrMultiProcessorCount: return MULTIPROCESSORS;
    case cudaDevAttrGlobalMemoryBusWidth: return 64;
    case cudaDevAttrL2CacheSize: return L2_BYTES;
    case cudaDevAttrComputeCapabilityMajor: return compute_capability() / 10;
    case cudaDevAttrComputeCapabilityMinor: return compute_capability() % 10;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return BLOCKS_PER_MULTIPROCESSOR;
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrPciBusId:
    case cudaDevAttrAsyncEngineCount:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrMemoryPoolsSupported: return 1;
    default: return 0;  // what the simulator does not have
  }
}

}  // namespace

API int sim_cudaDriverGetVersion(int *v) {
  *v = CUDA_VERSION_SHOWN;
  return SUCCESS;
}
API int sim_cudaRuntimeGetVersion(int *v) { return sim_cudaDriverGetVersion(v); }
API int cudaRuntimeGetVersion(int *v) { return sim_cudaDriverGetVersion(v); }
API int cuDriverGetVersion(int *v) { return sim_cudaDriverGetVersion(v); }

API int sim_cudaGetDevice(int *d) {
  *d = current_device;
  return SUCCESS;
}
API int cuCtxGetDevice(int *d) { return sim_cudaGetDevice(d); }
API int sim_cudaSetDevice(int d) {
  if (!is_device(d)) return result(INVALID_DEVICE);
  current_device = d;
  return SUCCESS;
}
API int sim_cudaGetDeviceCount(int *n) {
  *n = device_count();
  return *n ? SUCCESS : result(NO_DEVICE);
}
API int sim_cudaDeviceSynchronize() {
  count(DEVICE_SYNC);
  note("device_sync");
  run_everything();
  RETURN_IF_STICKY();
  return SUCCESS;
}
API int sim_cudaDeviceReset() { return SUCCESS; }
API int sim_cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = device != peer;
  return SUCCESS;
}
API int sim_cudaDeviceEnablePeerAccess(int, unsigned) { return SUCCESS; }
API int sim_cudaDeviceDisablePeerAccess(int) { return SUCCESS; }
API int sim_cudaDeviceGetLimit(size_t *value, int) {
  *value = 1 << 20;
  return SUCCESS;
}
API int sim_cudaDeviceSetLimit(int, size_t) { return SUCCESS; }
API int sim_cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02X:00.0", device + 1);
  return SUCCESS;
}
API int sim_cudaDeviceGetByPCIBusId(int *device, const char *text) {
  unsigned domain, bus;
  if (sscanf(text, "%x:%x", &domain, &bus) != 2 || bus < 1 || !is_device((int)bus - 1)) return result(INVALID_VALUE);
  *device = (int)bus - 1;
  return SUCCESS;
}
API int sim_cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}
API int sim_cudaDeviceGetAttribute(int *value, int which, int device) {
  if (!is_device(device)) return result(INVALID_DEVICE);
  if (which < 1 || which > 148) return result(INVALID_VALUE);
  *value = attribute(which);
  return SUCCESS;
}
API int sim_cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  if (!is_device(device)) return result(INVALID_DEVICE);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "cudasim (CPU)");
  p->totalGlobalMem = device_bytes();
  p->sharedMemPerBlock = SHARED_BYTES;
  p->regsPerBlock = REGISTERS;
  p->warpSize = WARP_SIZE;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = THREADS;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = GRID_X;
  p->maxGridSize[1] = p->maxGridSize[2] = GRID_YZ;
  p->totalConstMem = CONSTANT_BYTES;
  p->major = compute_capability() / 10;
  p->minor = compute_capability() % 10;
  p->multiProcessorCount = MULTIPROCESSORS;
  p->canMapHostMemory = 1;
  p->concurrentKernels = 1;
  p->unifiedAddressing = 1;
  p->maxThreadsPerMultiProcessor = THREADS;
  p->sharedMemPerMultiprocessor = SHARED_BYTES_OPTIN;
  p->regsPerMultiprocessor = REGISTERS;
  p->managedMemory = 1;
  p->sharedMemPerBlockOptin = SHARED_BYTES_OPTIN;
  p->l2CacheSize = L2_BYTES;
  p->pciBusID = device + 1;
  p->memoryPoolsSupported = 1;
  p->asyncEngineCount = 1;
  p->textureAlignment = TEXTURE_ALIGNMENT;
  p->maxBlocksPerMultiProcessor = BLOCKS_PER_MULTIPROCESSOR;
  p->memoryBusWidth = 64;
  p->uuid.bytes[0] = 0x51;
  p->uuid.bytes[15] = (char)device;
  return SUCCESS;
}
API int sim_cudaProfilerStart() { return SUCCESS; }
API int sim_cudaProfilerStop() { return SUCCESS; }
