// Driver API: launches, and what it says about functions.
#include "common/api.h"
#include "common/settings.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/modules.h"
#include "runtime/queue.h"
#include "runtime/streams.h"
#include <algorithm>
#include <cstring>

namespace sim {
namespace {

std::mutex run_mutex;  // one kernel at a time

std::string describe(const Kernel &kernel, Extent grid, Extent block) {
  const auto list = [](Extent e) {
    return std::to_string(e.x) + "," + std::to_string(e.y) + "," + std::to_string(e.z);
  };
  return "launch " + kernel.name + " grid " + list(grid) + " block " + list(block);
}
int check_launch(const Kernel &kernel, Extent grid, Extent block, unsigned shared) {
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  const bool empty = !grid.x || !grid.y || !grid.z || !threads;
  if (empty || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024) return INVALID_VALUE;
  if ((int)threads > kernel.max_threads) return LAUNCH_OUT_OF_RESOURCES;
  if (shared > DEFAULT_SHARED && shared > (unsigned)kernel.max_dynamic_shared) return INVALID_VALUE;
  if ((uint64_t)kernel.shared_bytes + shared > MAX_SHARED) return INVALID_VALUE;
  return SUCCESS;
}

}  // namespace

int launch(const LoadedFunction &function, Extent grid, Extent block, unsigned shared, void *stream,
           void **parameters) {
  if (const int e = sticky_error()) return e;
  const Kernel &kernel = *function.kernel;
  if (!is_stream(stream)) return INVALID_HANDLE;
  if (const int e = check_launch(kernel, grid, block, shared)) return e;
  std::vector<uint8_t> values(kernel.parameter_bytes);
  for (size_t k = 0; k < kernel.parameters.size(); k++) {
    if (!parameters || !parameters[k]) return INVALID_VALUE;
    memcpy(values.data() + kernel.parameters[k].offset, parameters[k], kernel.parameters[k].size);
  }
  count(KERNEL_LAUNCH);
  if (noting()) note(describe(kernel, grid, block));
  if (!kernel.error.empty()) {
    set_message("kernel " + kernel.name + ": " + kernel.error);
    return OPERATION_NOT_SUPPORTED;
  }
  enqueue(stream, [&kernel, grid, block, shared, values = std::move(values), check_races = race_check()] {
    std::string message;
    std::lock_guard<std::mutex> lock(run_mutex);
    const int error = run_kernel(kernel, grid, block, shared, values.data(), check_races, message);
    if (error) set_sticky_error(error, message);  // as on a GPU: the launch succeeds, later calls fail
  });
  return SUCCESS;
}
int set_function_attribute(Kernel &kernel, int attribute, int value) {
  constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
  if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;  // hints about caches
  if (value < 0 || value > MAX_SHARED) return INVALID_VALUE;
  kernel.max_dynamic_shared = value;
  return SUCCESS;
}

}  // namespace sim

using namespace sim;

API int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters, void **) {
  if (!function) return INVALID_HANDLE;
  return launch(*(LoadedFunction *)function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream,
                parameters);
}
API int cuLaunchCooperativeKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                  unsigned block_y, unsigned block_z, unsigned shared, void *stream,
                                  void **parameters) {
  if ((uint64_t)grid_x * grid_y * grid_z != 1) return OPERATION_NOT_SUPPORTED;  // blocks run one after another
  return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters,
                        nullptr);
}
API int cuFuncGetAttribute(int *value, int attribute, void *function) {
  const Kernel &kernel = *((LoadedFunction *)function)->kernel;
  switch (attribute) {  // CU_FUNC_ATTRIBUTE_*
    case 0: *value = kernel.max_threads; break;
    case 1: *value = kernel.shared_bytes; break;
    case 3: *value = kernel.local_bytes; break;
    case 4: *value = 32; break;  // registers
    case 5:
    case 6: *value = compute_capability(); break;  // of the PTX and of the compiled code
    case 8: *value = kernel.max_dynamic_shared ? kernel.max_dynamic_shared : DEFAULT_SHARED; break;
    default: *value = 0;
  }
  return SUCCESS;
}
API int cuFuncSetAttribute(void *function, int attribute, int value) {
  return set_function_attribute(*((LoadedFunction *)function)->kernel, attribute, value);
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int block_size, size_t) {
  *blocks = block_size > 0 ? std::min(1024 / block_size, 16) : 0;
  return SUCCESS;
}
API int cuOccupancyMaxPotentialBlockSize(int *grid_size, int *block_size, void *function, void *, size_t, int limit) {
  const int most = ((LoadedFunction *)function)->kernel->max_threads;
  *block_size = limit > 0 ? std::min(limit, most) : most;
  *grid_size = MULTIPROCESSORS;
  return SUCCESS;
}
