// Driver API: contexts, PTX modules, their functions and variables, and the linker.
#include "runtime/modules.h"
#include "common/api.h"
#include "common/settings.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/queue.h"
#include <cstdio>
#include <cstring>

namespace sim {

std::mutex modules_mutex;

namespace {

using Lock = std::lock_guard<std::mutex>;
std::map<void *, std::vector<std::unique_ptr<LoadedFunction>>> modules;

int context;  // only its address is used
thread_local void *current_context = nullptr;

// A cubin or a fat binary: code for one kind of device, which cannot be interpreted.
bool is_compiled(const void *image) {
  uint32_t magic;
  memcpy(&magic, image, sizeof magic);
  return memcmp(image, "\177ELF", 4) == 0 || magic == 0xBA55ED50u || magic == 0x466243B1u;
}

}  // namespace

void warn_if_broken(const Kernel &kernel) {
  if (!kernel.error.empty()) say("kernel %s cannot run: %s", kernel.name.c_str(), kernel.error.c_str());
}

}  // namespace sim

using namespace sim;

// NVRTC looks for a driver. It is told that there is none, which it takes well: it needs it for nothing used here.
API int cuInit(unsigned) { return NO_DEVICE; }
API int cuGetExportTable(const void **table, const void *) {
  if (table) *table = nullptr;
  return NOT_FOUND;
}

API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxGetCurrent(void **c) {
  if (!current_context) current_context = &context;
  *c = current_context;
  return SUCCESS;
}
API int cuCtxSetCurrent(void *c) {
  current_context = c;
  return SUCCESS;
}
API int cuCtxCreate_v2(void **c, unsigned, int) {
  *c = current_context = &context;
  return SUCCESS;
}
API int cuCtxDestroy_v2(void *) { return SUCCESS; }
API int cuStreamGetCtx(void *, void **c) {
  *c = &context;
  return SUCCESS;
}

API int cuModuleLoadData(void **module, const void *image) {
  if (const int e = sticky_error()) return e;
  if (is_compiled(image)) {
    say("only PTX can be loaded, not compiled device code");
    return NO_BINARY_FOR_GPU;
  }
  std::string error;
  Lock lock(modules_mutex);
  Module *loaded = load_module((const char *)image, error);
  if (!loaded) {
    say("PTX rejected: %s", error.c_str());
    return INVALID_PTX;
  }
  count(MODULE_LOAD);
  modules[loaded];
  *module = loaded;
  return SUCCESS;
}
API int cuModuleLoadDataEx(void **module, const void *image, unsigned, void *, void *) {
  return cuModuleLoadData(module, image);
}
API int cuModuleLoad(void **module, const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return FILE_NOT_FOUND;
  std::string content;
  char buffer[65536];
  while (const size_t n = fread(buffer, 1, sizeof buffer, file)) content.append(buffer, n);
  fclose(file);
  content.append(4, '\0');  // is_compiled looks at four bytes
  return cuModuleLoadData(module, content.c_str());
}
API int cuModuleUnload(void *module) {
  run_everything();  // launches that still wait hold pointers to its kernels
  Lock lock(modules_mutex);
  if (!modules.erase(module)) return INVALID_HANDLE;
  free_module((Module *)module);
  return SUCCESS;
}
API int cuModuleGetFunction(void **function, void *module, const char *name) {
  Lock lock(modules_mutex);
  const auto it = modules.find(module);
  if (it == modules.end()) return INVALID_HANDLE;
  std::string error;
  Kernel *kernel = find_kernel(*(Module *)module, name, error);
  if (!kernel) return NOT_FOUND;
  warn_if_broken(*kernel);
  it->second.push_back(std::make_unique<LoadedFunction>(LoadedFunction{(Module *)module, kernel}));
  *function = it->second.back().get();
  return SUCCESS;
}
API int cuModuleGetGlobal_v2(uint64_t *address, size_t *size, void *module, const char *name) {
  Lock lock(modules_mutex);
  if (!modules.count(module)) return INVALID_HANDLE;
  const auto &variables = ((Module *)module)->variables;
  const auto it = variables.find(name);
  if (it == variables.end() || it->second.space == SHARED) return NOT_FOUND;
  if (address) *address = it->second.address;
  if (size) *size = it->second.size;
  return SUCCESS;
}

// The linker puts PTX texts one after another.
API int cuLinkCreate_v2(unsigned, void *, void *, void **state) {
  *state = new std::string;
  return SUCCESS;
}
API int cuLinkAddData_v2(void *state, int type, void *data, size_t size, const char *, unsigned, void *, void *) {
  constexpr int PTX_INPUT = 1;
  if (type != PTX_INPUT) return OPERATION_NOT_SUPPORTED;
  ((std::string *)state)->append((const char *)data, strnlen((const char *)data, size));
  return SUCCESS;
}
// CuPy adds cudadevrt, NVIDIA's library of device functions, to all it links. A kernel that calls one of them is
// refused when it is lowered.
API int cuLinkAddFile_v2(void *, int, const char *, unsigned, void *, void *) { return SUCCESS; }
API int cuLinkComplete(void *state, void **image, size_t *size) {
  const auto *text = (std::string *)state;
  *image = (void *)text->c_str();
  *size = text->size() + 1;
  return SUCCESS;
}
API int cuLinkDestroy(void *state) {
  delete (std::string *)state;
  return SUCCESS;
}
