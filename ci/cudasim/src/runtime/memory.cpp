// The table of allocations, and the functions that allocate, free and describe memory.
#include "runtime/memory.h"
#include "common/api.h"
#include "common/settings.h"
#include "ptx/program.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/queue.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <driver_types.h>
#include <map>
#include <mutex>

namespace sim {
namespace {

std::mutex mutex;
using Lock = std::lock_guard<std::mutex>;
std::map<uint64_t, Allocation> allocations;  // by start
uint64_t used = 0;                           // bytes of the device's memory

constexpr uint64_t ALIGNMENT = 512;  // that of cudaMalloc
constexpr uint64_t PADDING = 512;    // between allocations: so that the end of one is never the start of another

bool is_limited(Memory kind) { return kind == Memory::DEVICE || kind == Memory::MANAGED; }

}  // namespace

void *allocate(uint64_t size, Memory kind) {
  Lock lock(mutex);
  if (is_limited(kind) && (used > device_bytes() || size > device_bytes() - used)) return nullptr;
  void *p = nullptr;
  if (size > SIZE_MAX - PADDING || posix_memalign(&p, ALIGNMENT, size + PADDING)) return nullptr;
  if (poison() >= 0) memset(p, poison(), size + PADDING);
  allocations[(uint64_t)p] = {(uint64_t)p, size, kind, p};
  if (is_limited(kind)) used += size;
  return p;
}
bool release(void *p, Memory kind) {
  Lock lock(mutex);
  const auto it = allocations.find((uint64_t)p);
  if (it == allocations.end() || it->second.kind != kind) return false;
  if (is_limited(kind)) used -= it->second.size;
  free(it->second.owned);
  allocations.erase(it);
  return true;
}
bool find(const void *p, Allocation &found) {
  Lock lock(mutex);
  auto it = allocations.upper_bound((uint64_t)p);
  if (it == allocations.begin()) return false;
  const Allocation &a = (--it)->second;
  if ((uint64_t)p >= a.start + a.size && (uint64_t)p != a.start) return false;
  found = a;
  return true;
}

// For the PTX engine.
uint64_t allocate_for_module(uint64_t size) { return (uint64_t)allocate(size, Memory::MODULE); }
void free_of_module(uint64_t address) { release((void *)address, Memory::MODULE); }
bool find_allocation(uint64_t address, uint64_t &start, uint64_t &size) {
  Allocation a;
  if (!find((void *)address, a)) return false;
  start = a.start;
  size = a.size;
  return true;
}

namespace {

int allocate_for_user(void **p, size_t size, Memory kind) {
  *p = size ? allocate(size, kind) : nullptr;
  return size && !*p ? result(OUT_OF_MEMORY) : SUCCESS;
}

// cudaMallocAsync: the pool keeps nothing back, but reports as one that keeps all.
struct Pool {
  std::map<void *, size_t> blocks;
  uint64_t used = 0, reserved = 0, used_high = 0, reserved_high = 0, threshold = 0;
};
std::mutex pool_mutex;
Pool pool;

void leave_pool(void *p) {
  Lock lock(pool_mutex);
  const auto it = pool.blocks.find(p);
  if (it == pool.blocks.end()) return;
  pool.used -= it->second;
  pool.blocks.erase(it);
}

bool is_bad(cudaMemLocation l) { return l.type == cudaMemLocationTypeDevice && (l.id < 0 || l.id >= device_count()); }

}  // namespace
}  // namespace sim

using namespace sim;

API int cudasim_is_device(const void *p, uint64_t bytes) {
  Allocation a;
  return find(p, a) && a.kind != Memory::PINNED && a.contains((uint64_t)p, bytes);
}

API int sim_cudaMalloc(void **p, size_t size) {
  RETURN_IF_STICKY();
  count(MALLOC);
  return allocate_for_user(p, size, Memory::DEVICE);
}
API int sim_cudaMallocManaged(void **p, size_t size, unsigned) {
  RETURN_IF_STICKY();
  count(MALLOC);
  return size ? allocate_for_user(p, size, Memory::MANAGED) : result(INVALID_VALUE);
}
API int sim_cudaFree(void *p) {
  if (!p) return SUCCESS;
  run_everything();  // as cudaFree does
  leave_pool(p);
  count(FREE);
  if (!release(p, Memory::DEVICE) && !release(p, Memory::MANAGED)) return result(INVALID_VALUE);
  RETURN_IF_STICKY();
  return SUCCESS;
}
API int sim_cudaHostAlloc(void **p, size_t size, unsigned) {
  RETURN_IF_STICKY();
  count(HOST_ALLOC);
  return allocate_for_user(p, size, Memory::PINNED);
}
API int sim_cudaMallocHost(void **p, size_t size) { return sim_cudaHostAlloc(p, size, 0); }
API int sim_cudaFreeHost(void *p) {
  if (!p) return SUCCESS;
  run_everything();
  return release(p, Memory::PINNED) ? SUCCESS : result(INVALID_VALUE);
}
API int sim_cudaHostRegister(void *p, size_t size, unsigned) {
  Lock lock(sim::mutex);
  allocations[(uint64_t)p] = {(uint64_t)p, size, Memory::PINNED, nullptr};
  return SUCCESS;
}
API int sim_cudaHostUnregister(void *p) { return release(p, Memory::PINNED) ? SUCCESS : result(INVALID_VALUE); }
API int sim_cudaHostGetDevicePointer(void **device, void *host, unsigned) {
  *device = host;
  return SUCCESS;
}
API int sim_cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  RETURN_IF_STICKY();
  Lock lock(sim::mutex);
  *total = device_bytes();
  *free_bytes = device_bytes() - used;
  return SUCCESS;
}
API int sim_cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p) {
  memset(attributes, 0, sizeof *attributes);
  Allocation a;
  if (!find(p, a)) {
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -2;
    attributes->hostPointer = (void *)p;
    return SUCCESS;
  }
  attributes->type = a.kind == Memory::PINNED    ? cudaMemoryTypeHost
                     : a.kind == Memory::MANAGED ? cudaMemoryTypeManaged
                                                 : cudaMemoryTypeDevice;
  attributes->devicePointer = (void *)p;
  if (a.kind == Memory::PINNED || a.kind == Memory::MANAGED) attributes->hostPointer = (void *)p;
  return SUCCESS;
}
API int sim_cudaMemPrefetchAsync(const void *, size_t, cudaMemLocation l, unsigned, void *) {
  return is_bad(l) ? result(INVALID_DEVICE) : SUCCESS;
}
API int sim_cudaMemAdvise(const void *, size_t, int advice, cudaMemLocation l) {
  if (advice < cudaMemAdviseSetReadMostly || advice > cudaMemAdviseUnsetAccessedBy) return result(INVALID_VALUE);
  return is_bad(l) ? result(INVALID_DEVICE) : SUCCESS;
}

API int sim_cudaMallocAsync(void **p, size_t size, void *) {
  const int error = sim_cudaMalloc(p, size);
  if (error || !*p) return error;
  Lock lock(pool_mutex);
  pool.blocks[*p] = size;
  pool.used += size;
  pool.reserved = std::max(pool.reserved, pool.used);
  pool.used_high = std::max(pool.used_high, pool.used);
  pool.reserved_high = std::max(pool.reserved_high, pool.reserved);
  return SUCCESS;
}
API int sim_cudaMallocFromPoolAsync(void **p, size_t size, void *, void *stream) {
  return sim_cudaMallocAsync(p, size, stream);
}
API int sim_cudaFreeAsync(void *p, void *) { return sim_cudaFree(p); }
API int sim_cudaDeviceGetDefaultMemPool(void **p, int) {
  *p = &pool;
  return SUCCESS;
}
API int sim_cudaDeviceGetMemPool(void **p, int device) { return sim_cudaDeviceGetDefaultMemPool(p, device); }
API int sim_cudaDeviceSetMemPool(int, void *) { return SUCCESS; }
API int sim_cudaMemPoolCreate(void **p, const void *) { return sim_cudaDeviceGetDefaultMemPool(p, 0); }
API int sim_cudaMemPoolDestroy(void *) { return SUCCESS; }
API int sim_cudaMemPoolTrimTo(void *, size_t keep) {
  Lock lock(pool_mutex);
  pool.reserved = std::max<uint64_t>(pool.used, std::min<uint64_t>(pool.reserved, keep));
  return SUCCESS;
}
API int sim_cudaMemPoolGetAttribute(void *, int attribute, void *value) {
  Lock lock(pool_mutex);
  auto &number = *(uint64_t *)value;
  switch (attribute) {
    case cudaMemPoolReuseFollowEventDependencies:
    case cudaMemPoolReuseAllowOpportunistic:
    case cudaMemPoolReuseAllowInternalDependencies: *(int *)value = 1; break;
    case cudaMemPoolAttrReleaseThreshold: number = pool.threshold; break;
    case cudaMemPoolAttrReservedMemCurrent: number = pool.reserved; break;
    case cudaMemPoolAttrReservedMemHigh: number = pool.reserved_high; break;
    case cudaMemPoolAttrUsedMemCurrent: number = pool.used; break;
    case cudaMemPoolAttrUsedMemHigh: number = pool.used_high; break;
    default: return result(INVALID_VALUE);
  }
  return SUCCESS;
}
API int sim_cudaMemPoolSetAttribute(void *, int attribute, void *value) {
  Lock lock(pool_mutex);
  if (attribute == cudaMemPoolAttrReleaseThreshold) pool.threshold = *(uint64_t *)value;
  const bool known = attribute >= cudaMemPoolReuseFollowEventDependencies && attribute <= cudaMemPoolAttrUsedMemHigh;
  return known ? SUCCESS : result(INVALID_VALUE);
}
