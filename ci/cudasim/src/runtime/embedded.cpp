// Kernels that nvcc compiled into CuPy's own modules (thrust, cub, the random generators). Each module registers a fat
// binary, which holds code for several devices and a copy as PTX; that copy is what runs here.
#include "common/api.h"
#include "common/settings.h"
#include "runtime/errors.h"
#include "runtime/modules.h"
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <driver_types.h>
#include <set>
#include <stdexcept>

namespace sim {
namespace {

using Lock = std::lock_guard<std::mutex>;

struct FatBinary {
  const uint8_t *data;
  Module *module = nullptr;
  bool read = false;
  int architecture = 0;
  std::string error;
};
struct HostFunction {  // the stub that host code names when it launches a kernel
  FatBinary *binary;
  std::string kernel_name;
  std::unique_ptr<LoadedFunction> function;
};
std::mutex mutex;
std::set<std::unique_ptr<FatBinary>> binaries;
std::map<const void *, HostFunction> host_functions;

template <class T>
T read(const uint8_t *at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

// The format is not documented; these offsets are those of CUDA 12 and 13.
struct Entry {
  uint16_t kind;
  uint32_t header_bytes, compressed_bytes, architecture;
  uint64_t bytes, plain_bytes;
  const uint8_t *payload;
};
constexpr uint32_t FAT_BINARY_MAGIC = 0xBA55ED50u, ZSTD_MAGIC = 0xFD2FB528u;
constexpr uint16_t PTX_ENTRY = 1;
constexpr size_t ENTRY_HEADER = 64;
Entry read_entry(const uint8_t *at) {
  Entry e{read<uint16_t>(at),
          read<uint32_t>(at + 4),
          read<uint32_t>(at + 16),
          read<uint32_t>(at + 28),
          read<uint64_t>(at + 8),
          read<uint64_t>(at + 56),
          nullptr};
  e.payload = at + e.header_bytes;
  return e;
}

std::string decompress(const Entry &e) {
  if (!e.compressed_bytes) return std::string((const char *)e.payload, e.bytes);
  if (read<uint32_t>(e.payload) != ZSTD_MAGIC) throw std::runtime_error("unknown compression of embedded PTX");
  using Decompress = size_t (*)(void *, size_t, const void *, size_t);
  void *library = dlopen("libzstd.so.1", RTLD_NOW);
  const auto zstd = library ? (Decompress)dlsym(library, "ZSTD_decompress") : nullptr;
  if (!zstd) throw std::runtime_error("libzstd.so.1 is needed to read embedded PTX");
  std::string text(e.plain_bytes, '\0');
  if (zstd(&text[0], text.size(), e.payload, e.compressed_bytes) != e.plain_bytes)
    throw std::runtime_error("embedded PTX does not decompress");
  return text;
}
Entry find_ptx(const uint8_t *data) {
  if (read<uint32_t>(data) != FAT_BINARY_MAGIC) throw std::runtime_error("no fat binary");
  const uint8_t *at = data + read<uint16_t>(data + 6), *end = at + read<uint64_t>(data + 8);
  while (at + ENTRY_HEADER <= end) {
    const Entry e = read_entry(at);
    if (e.kind == PTX_ENTRY) return e;
    if (!e.header_bytes) break;
    at += e.header_bytes + e.bytes;
  }
  throw std::runtime_error("no PTX in the embedded device code");
}
// Reads the PTX once; later calls only say whether that went well. modules_mutex is held.
bool load(FatBinary &binary) {
  if (binary.read) return binary.module;
  binary.read = true;
  try {
    const Entry e = find_ptx(binary.data);
    binary.architecture = e.architecture;
    binary.module = load_module(decompress(e).c_str(), binary.error);
  } catch (const std::exception &e) {
    binary.error = e.what();
  }
  return binary.module;
}

const LoadedFunction *find_function(const void *stub) {
  Lock lock(mutex);
  const auto it = host_functions.find(stub);
  if (it == host_functions.end()) return nullptr;
  HostFunction &host = it->second;
  if (host.function) return host.function.get();
  Lock modules_lock(modules_mutex);
  std::string error;
  Kernel *kernel = load(*host.binary) ? find_kernel(*host.binary->module, host.kernel_name, error) : nullptr;
  if (!kernel) {
    say("%s", host.binary->module ? error.c_str() : host.binary->error.c_str());
    return nullptr;
  }
  warn_if_broken(*kernel);
  host.function = std::make_unique<LoadedFunction>(LoadedFunction{host.binary->module, kernel});
  return host.function.get();
}

struct Configuration {  // what <<<grid, block, shared, stream>>> pushes and the stub of the kernel pops
  Extent grid, block;
  size_t shared;
  void *stream;
};
thread_local std::vector<Configuration> configurations;

}  // namespace
}  // namespace sim

using namespace sim;

// Builds every embedded kernel; returns how many cannot run, and prints why.
API int cudasim_check_embedded(int *total) {
  Lock lock(sim::mutex), modules_lock(modules_mutex);
  std::map<std::string, int> reasons;
  int broken = 0;
  *total = 0;
  for (const auto &binary : binaries) {
    if (!load(*binary)) {
      fprintf(stderr, "cudasim: %s\n", binary->error.c_str());
      continue;
    }
    for (const auto &name : entry_names(*binary->module)) {
      std::string error;
      const Kernel *kernel = find_kernel(*binary->module, name, error);
      if (kernel) error = kernel->error;
      ++*total;
      if (error.empty()) continue;
      broken++;
      reasons[error.substr(0, error.find('%'))]++;
    }
  }
  for (const auto &[reason, times] : reasons) fprintf(stderr, "%6d  %s\n", times, reason.c_str());
  return broken;
}

API void **sim___cudaRegisterFatBinary(void *wrapper) {
  auto binary = std::make_unique<FatBinary>();
  binary->data = read<const uint8_t *>((const uint8_t *)wrapper + 8);
  auto *handle = binary.get();
  Lock lock(sim::mutex);
  binaries.insert(std::move(binary));
  return (void **)handle;
}
API void sim___cudaRegisterFatBinaryEnd(void **) {}
API void sim___cudaUnregisterFatBinary(void **) {}
API void sim___cudaRegisterFunction(void **handle, const void *stub, char *, const char *name, int, void *, void *,
                                    void *, void *, int *) {
  Lock lock(sim::mutex);
  for (const auto &binary : binaries)
    if ((void **)binary.get() == handle) host_functions[stub] = {binary.get(), name, nullptr};
}
API void sim___cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
API void sim___cudaRegisterManagedVar(void **, void **, char *, const char *, int, size_t, int, int) {}
API void sim___cudaRegisterHostVar(void **, const char *, char *, size_t) {}
API char sim___cudaInitModule(void **) { return 1; }
API int sim___cudaGetKernel(void **kernel, const void *stub) {
  *kernel = (void *)stub;
  return SUCCESS;
}
API unsigned sim___cudaPushCallConfiguration(Extent grid, Extent block, size_t shared, void *stream) {
  configurations.push_back({grid, block, shared, stream});
  return SUCCESS;
}
API int sim___cudaPopCallConfiguration(Extent *grid, Extent *block, size_t *shared, void *stream) {
  if (configurations.empty()) return result(INVALID_CONFIGURATION);
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *(void **)stream = c.stream;
  return SUCCESS;
}
API int sim_cudaLaunchKernel(const void *stub, Extent grid, Extent block, void **arguments, size_t shared,
                             void *stream) {
  RETURN_IF_STICKY();
  const LoadedFunction *function = find_function(stub);
  if (!function) {
    set_sticky_error(OPERATION_NOT_SUPPORTED, "an embedded kernel cannot be loaded");
    return result(INVALID_DEVICE_FUNCTION);
  }
  const int error = launch(*function, grid, block, (unsigned)shared, stream, arguments);
  // thrust and cub do not look at every result: sticky, so that it is not passed over
  if (error == OPERATION_NOT_SUPPORTED)
    set_sticky_error(error, "kernel " + function->kernel->name + ": " + function->kernel->error);
  return result(error);
}
API int sim___cudaLaunchKernel(const void *stub, Extent grid, Extent block, void **arguments, size_t shared,
                               void *stream) {
  return sim_cudaLaunchKernel(stub, grid, block, arguments, shared, stream);
}
API int sim_cudaLaunchKernelExC(const Configuration *c, const void *stub, void **arguments) {
  return sim_cudaLaunchKernel(stub, c->grid, c->block, arguments, c->shared, c->stream);
}
API int sim_cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *stub) {
  memset(attributes, 0, sizeof *attributes);
  const LoadedFunction *function = find_function(stub);
  if (!function) return result(INVALID_DEVICE_FUNCTION);
  attributes->sharedSizeBytes = function->kernel->shared_bytes;
  attributes->localSizeBytes = function->kernel->local_bytes;
  attributes->maxThreadsPerBlock = function->kernel->max_threads;
  attributes->numRegs = 32;
  Lock lock(sim::mutex);
  attributes->ptxVersion = attributes->binaryVersion = host_functions[stub].binary->architecture;
  attributes->maxDynamicSharedSizeBytes = DEFAULT_SHARED;
  return SUCCESS;
}
API int sim_cudaFuncSetAttribute(const void *stub, int attribute, int value) {
  const LoadedFunction *function = find_function(stub);
  if (!function) return result(INVALID_DEVICE_FUNCTION);
  return result(set_function_attribute(*function->kernel, attribute, value));
}
API int sim_cudaFuncSetCacheConfig(const void *, int) { return SUCCESS; }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int block_size, size_t);
API int sim_cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int block_size, size_t shared) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, nullptr, block_size, shared);
}
API int sim_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int block_size,
                                                                   size_t shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, nullptr, block_size, shared);
}
