// CuPy's modules have the CUDA runtime linked in. A jump to a function of ours is written over each of its functions,
// in memory only; cudasim/patching.py finds out where they are.
#include "common/api.h"
#include "common/settings.h"
#include "runtime/errors.h"
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>

using namespace sim;

namespace {

constexpr uint64_t PAGE = 4096;

// What functions without a replacement do.
int unsupported(const char *name) {
  static std::mutex mutex;
  static std::set<std::string> said;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (said.insert(name).second) say("%s is not supported", name);
  }
  return result(OPERATION_NOT_SUPPORTED);
}

void write_bytes(uint8_t *&at, std::initializer_list<uint8_t> bytes) {
  for (const uint8_t b : bytes) *at++ = b;
}
void write_pointer(uint8_t *&at, const void *pointer) {
  memcpy(at, &pointer, sizeof pointer);
  at += sizeof pointer;
}
void write_jump(uint8_t *&at, const void *target) {
  write_bytes(at, {0x48, 0xB8});  // mov rax, target
  write_pointer(at, target);
  write_bytes(at, {0xFF, 0xE0});  // jmp rax
}
constexpr size_t JUMP_BYTES = 12, STUB_BYTES = 32;

// Code that calls unsupported(name); null if there is no memory for it.
void *make_stub(const char *name) {
  static uint8_t *next = nullptr, *end = nullptr;
  if (next == end) {
    constexpr size_t size = 16 * PAGE;
    void *page = mmap(nullptr, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return nullptr;
    next = (uint8_t *)page;
    end = next + size;
  }
  uint8_t *stub = next, *at = stub;
  next += STUB_BYTES;
  write_bytes(at, {0x48, 0xBF});  // mov rdi, name: the first argument
  write_pointer(at, strdup(name));
  write_jump(at, (const void *)&unsupported);
  return stub;
}
void *find_replacement(const char *name) {
  static void *const library = [] {
    Dl_info info;
    dladdr((const void *)&find_replacement, &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  return library ? dlsym(library, (std::string("sim_") + name).c_str()) : nullptr;
}

}  // namespace

// Returns 1 for a replacement, 0 for a stub, -1 on failure.
API int cudasim_patch(const char *name, uint64_t address) {
  void *replacement = find_replacement(name);
  const void *target = replacement ? replacement : make_stub(name);
  if (!target) return -1;
  const uint64_t first_page = address & ~(PAGE - 1);
  const size_t size = ((address + JUMP_BYTES + PAGE - 1) & ~(PAGE - 1)) - first_page;
  if (mprotect((void *)first_page, size, PROT_READ | PROT_WRITE | PROT_EXEC)) return -1;
  auto *at = (uint8_t *)address;
  write_jump(at, target);
  mprotect((void *)first_page, size, PROT_READ | PROT_EXEC);
  return replacement ? 1 : 0;
}
