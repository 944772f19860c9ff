// Runtime API (patched over the static cudart inside CuPy's modules) and driver API on host memory.
#include "ptx.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <dlfcn.h>
#include <driver_types.h>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <vector_types.h>

#define API extern "C" __attribute__((visibility("default")))
using namespace sim;

// ---------------------------------------------------------------- counters
enum {
  C_LAUNCH,
  C_H2D,
  C_D2H,
  C_D2D,
  C_H2H,
  C_H2D_BYTES,
  C_D2H_BYTES,
  C_D2D_BYTES,
  C_MEMSET,
  C_DEVSYNC,
  C_STREAMSYNC,
  C_EVENTSYNC,
  C_EVENTRECORD,
  C_STREAMWAIT,
  C_MALLOC,
  C_FREE,
  C_HOSTALLOC,
  C_MODULE,
  C_GEMM,
  C_BLAS,
  C_RAND,
  C_EVENTQUERY,
  C_STREAMCREATE,
  C_NUM
};
static const char *cnames[C_NUM] = {
    "kernel_launch", "h2d",          "d2h",         "d2d",         "h2h",        "h2d_bytes",    "d2h_bytes",
    "d2d_bytes",     "memset",       "device_sync", "stream_sync", "event_sync", "event_record", "stream_wait_event",
    "malloc",        "free",         "host_alloc",  "module_load", "gemm",       "blas_other",   "curand",
    "event_query",   "stream_create"};
static std::atomic<uint64_t> cnt[C_NUM];
static std::mutex logmu;
static std::vector<std::string> logv;
static std::atomic<int> logon{0};
static bool trace() {
  static int t = getenv("CUDASIM_TRACE") && *getenv("CUDASIM_TRACE") && strcmp(getenv("CUDASIM_TRACE"), "0");
  return t;
}
static void note(const std::string &s) {
  if (trace()) fprintf(stderr, "cudasim: %s\n", s.c_str());
  if (logon) {
    std::lock_guard<std::mutex> g(logmu);
    logv.push_back(s);
  }
}
API void cudasim_add(const char *name, uint64_t v) {
  for (int i = 0; i < C_NUM; i++)
    if (!strcmp(cnames[i], name)) {
      cnt[i] += v;
      return;
    }
}
API void cudasim_note(const char *s) {
  if (trace() || logon) note(s);
}
API int cudasim_counter_count() { return C_NUM; }
API const char *cudasim_counter_name(int i) { return i >= 0 && i < C_NUM ? cnames[i] : nullptr; }
API uint64_t cudasim_counter_value(int i) { return i >= 0 && i < C_NUM ? cnt[i].load() : 0; }
API void cudasim_counter_reset() {
  for (auto &c : cnt) c = 0;
}
API void cudasim_log(int on) {
  logon = on;
  if (on) {
    std::lock_guard<std::mutex> g(logmu);
    logv.clear();
  }
}
API int cudasim_log_size() {
  std::lock_guard<std::mutex> g(logmu);
  return (int)logv.size();
}
API const char *cudasim_log_get(int i) {
  std::lock_guard<std::mutex> g(logmu);
  return i < (int)logv.size() ? logv[i].c_str() : nullptr;
}
API uint64_t cudasim_instructions() { return total_ins; }

// ---------------------------------------------------------------- errors
static std::atomic<int> sticky{0};
static std::string stickymsg;
static thread_local int lasterr = 0;
static std::mutex errmu;
static int quiet() {
  static int q = getenv("CUDASIM_QUIET") ? 1 : 0;
  return q;
}
static int ret(int e) {
  if (e && e != 600) lasterr = e;
  return e;
}
static void set_sticky(int code, const std::string &m) {
  {
    std::lock_guard<std::mutex> g(errmu);
    sticky = code;
    stickymsg = m;
  }
  if (!quiet()) fprintf(stderr, "cudasim: %s\n", m.c_str());
}
API const char *cudasim_last_message() { return stickymsg.c_str(); }
API void cudasim_clear_error() {
  sticky = 0;
  lasterr = 0;
  stickymsg.clear();
}
#define CHECK_STICKY()              \
  do {                              \
    if (sticky) return ret(sticky); \
  } while (0)
struct EN {
  int c;
  const char *n, *cu, *s;
};
static const EN errs[] = {
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
static const EN *find_err(int c) {
  for (auto &e : errs)
    if (e.c == c) return &e;
  return nullptr;
}
API const char *sim_cudaGetErrorName(int e) {
  auto *x = find_err(e);
  return x ? x->n : "unrecognized error code";
}
API const char *sim_cudaGetErrorString(int e) {
  auto *x = find_err(e);
  return x ? x->s : "unrecognized error code";
}
API int sim_cudaGetLastError() {
  int e = sticky ? (int)sticky : lasterr;
  lasterr = 0;
  return e;
}
API int sim_cudaPeekAtLastError() { return sticky ? (int)sticky : lasterr; }
API int cuGetErrorName(int e, const char **p) {
  auto *x = find_err(e);
  *p = x ? x->cu : "CUDA_ERROR_UNKNOWN";
  return x ? 0 : 1;
}
API int cuGetErrorString(int e, const char **p) {
  auto *x = find_err(e);
  *p = x ? x->s : "unknown error";
  return x ? 0 : 1;
}

// ---------------------------------------------------------------- optional lateness: CUDASIM_ASYNC=1 runs nothing
// before something waits for it
struct Op {
  std::function<void()> fn;
  std::vector<std::pair<void *, uint64_t>> deps;
};
struct Queue {
  std::deque<Op> ops;
  uint64_t done = 0, last = 0;
  bool blocking = true;
};
static std::recursive_mutex qmu;
static std::map<void *, Queue> queues;
static bool async_mode() {
  static int a = getenv("CUDASIM_ASYNC") && *getenv("CUDASIM_ASYNC") && strcmp(getenv("CUDASIM_ASYNC"), "0");
  return a;
}
static void *qid(void *s) { return (uint64_t)s <= 1 ? nullptr : s; }
static void run_until(void *s, uint64_t seq) {
  Queue &q = queues[s];
  while (q.done < seq && !q.ops.empty()) {
    Op op = std::move(q.ops.front());
    q.ops.pop_front();
    for (auto &d : op.deps) run_until(d.first, d.second);
    if (op.fn && !sticky) op.fn();
    q.done++;
  }
}
static uint64_t enqueue(void *s, std::function<void()> fn, std::pair<void *, uint64_t> dep = {nullptr, 0},
                        bool hasdep = false) {
  if (!async_mode()) {
    if (fn) fn();
    return 0;
  }
  std::lock_guard<std::recursive_mutex> g(qmu);
  s = qid(s);
  Queue &q = queues[s];
  Op op;
  op.fn = std::move(fn);
  if (hasdep) op.deps.push_back(dep);
  if (!s) {
    for (auto &x : queues)
      if (x.first && x.second.blocking && x.second.done < x.second.last) op.deps.push_back({x.first, x.second.last});
  } else if (q.blocking) {
    Queue &n = queues[nullptr];
    if (n.done < n.last) op.deps.push_back({nullptr, n.last});
  }
  q.ops.push_back(std::move(op));
  return ++q.last;
}
static void flush_stream(void *s) {
  if (!async_mode()) return;
  std::lock_guard<std::recursive_mutex> g(qmu);
  s = qid(s);
  if (!s)
    for (auto &x : queues)
      if (x.first && x.second.blocking) run_until(x.first, x.second.last);
  run_until(s, queues[s].last);
}
static void flush_all() {
  if (!async_mode()) return;
  std::lock_guard<std::recursive_mutex> g(qmu);
  for (auto &x : queues) run_until(x.first, x.second.last);
}
API void cudasim_stream_flush(void *s) {
  if (!async_mode()) return;
  std::lock_guard<std::recursive_mutex> g(qmu);
  uint64_t n = enqueue(s, nullptr);
  run_until(qid(s), n);
}

// ---------------------------------------------------------------- memory
struct Block {
  uint64_t size;
  int kind;
  void *raw;
};  // kind 2 device, 3 managed, 1 pinned host, 4 module data
static std::mutex memmu;
static std::map<uint64_t, Block> mem;
static uint64_t used = 0;
static uint64_t total_mem() {
  static uint64_t t = getenv("CUDASIM_MEM") ? strtoull(getenv("CUDASIM_MEM"), nullptr, 0) : (4ull << 30);
  return t;
}
static const uint64_t PAD = 512;
static int poison() {
  static int p = getenv("CUDASIM_POISON") ? (int)strtol(getenv("CUDASIM_POISON"), nullptr, 0) : 0xFF;
  return p;
}
static uint64_t alloc_block(uint64_t size, int kind) {
  std::lock_guard<std::mutex> g(memmu);
  if ((kind == 2 || kind == 3) && used + size > total_mem()) return 0;
  void *p = nullptr;
  if (posix_memalign(&p, 512, size + PAD)) return 0;
  if (poison() >= 0) memset(p, poison(), size + PAD);
  mem[(uint64_t)p] = {size, kind, p};
  if (kind == 2 || kind == 3) used += size;
  return (uint64_t)p;
}
static int free_block(uint64_t p, int kinds) {
  std::lock_guard<std::mutex> g(memmu);
  auto it = mem.find(p);
  if (it == mem.end() || !(kinds >> it->second.kind & 1)) return 1;
  if (it->second.kind == 2 || it->second.kind == 3) used -= it->second.size;
  if (it->second.raw) free(it->second.raw);
  mem.erase(it);
  return 0;
}
static bool find_block(uint64_t a, uint64_t &lo, Block &b) {
  std::lock_guard<std::mutex> g(memmu);
  auto it = mem.upper_bound(a);
  if (it == mem.begin()) return false;
  --it;
  if (a >= it->first + it->second.size && !(a == it->first)) return false;
  lo = it->first;
  b = it->second;
  return true;
}
namespace sim {
uint64_t heap_alloc(uint64_t size, int) { return alloc_block(size, 4); }
int heap_free(uint64_t p) { return free_block(p, 1 << 4); }
bool mem_lookup(uint64_t a, uint64_t &lo, uint64_t &hi) {
  Block b;
  if (!find_block(a, lo, b)) return false;
  hi = lo + b.size;
  return true;
}
int device_cc() {
  static int c = getenv("CUDASIM_CC") ? atoi(getenv("CUDASIM_CC")) : 75;
  return c;
}
int device_sms() { return 4; }
}  // namespace sim
static int ndev() {
  static int n = getenv("CUDASIM_DEVICES") ? atoi(getenv("CUDASIM_DEVICES")) : 1;
  return n;
}
static thread_local int curdev = 0;
static std::mutex stmu;
static std::set<void *> streams;
static bool okst(void *s) {
  if ((uint64_t)s <= 2) return true;
  std::lock_guard<std::mutex> g(stmu);
  return streams.count(s) != 0;
}
static bool on_device(const void *p, size_t n, bool *bad = nullptr) {
  uint64_t lo;
  Block b;
  if (!find_block((uint64_t)p, lo, b)) return false;
  if (b.kind == 1) return false;
  if ((uint64_t)p + n > lo + b.size) {
    if (bad) *bad = true;
  }
  return true;
}
API int cudasim_is_device(const void *p) { return on_device(p, 0); }

API int sim_cudaMalloc(void **p, size_t n) {
  CHECK_STICKY();
  cnt[C_MALLOC]++;
  if (n == 0) {
    *p = nullptr;
    return 0;
  }
  uint64_t a = alloc_block(n, 2);
  if (!a) return ret(2);
  *p = (void *)a;
  return 0;
}
API int sim_cudaMallocManaged(void **p, size_t n, unsigned) {
  CHECK_STICKY();
  cnt[C_MALLOC]++;
  if (n == 0) return ret(1);
  uint64_t a = alloc_block(n, 3);
  if (!a) return ret(2);
  *p = (void *)a;
  return 0;
}
static std::map<uint64_t, uint64_t> pool_blocks;
static uint64_t pool_used = 0, pool_reserved = 0, pool_threshold = 0, pool_used_high = 0, pool_reserved_high = 0;
API int sim_cudaMallocAsync(void **p, size_t n, void *) {
  int e = sim_cudaMalloc(p, n);
  if (!e && *p) {
    std::lock_guard<std::mutex> g(memmu);
    pool_blocks[(uint64_t)*p] = n;
    pool_used += n;
    pool_reserved = std::max(pool_reserved, pool_used);
    pool_used_high = std::max(pool_used_high, pool_used);
    pool_reserved_high = std::max(pool_reserved_high, pool_reserved);
  }
  return e;
}
API int sim_cudaMallocFromPoolAsync(void **p, size_t n, void *, void *s) { return sim_cudaMallocAsync(p, n, s); }
API int sim_cudaFree(void *p) {
  if (!p) return 0;
  flush_all();
  {
    std::lock_guard<std::mutex> g(memmu);
    auto it = pool_blocks.find((uint64_t)p);
    if (it != pool_blocks.end()) {
      pool_used -= it->second;
      pool_blocks.erase(it);
    }
  }
  cnt[C_FREE]++;
  int e = free_block((uint64_t)p, 1 << 2 | 1 << 3);
  if (e) return ret(1);
  CHECK_STICKY();
  return 0;
}
API int sim_cudaFreeAsync(void *p, void *) { return sim_cudaFree(p); }
API int sim_cudaHostAlloc(void **p, size_t n, unsigned) {
  CHECK_STICKY();
  cnt[C_HOSTALLOC]++;
  if (n == 0) {
    *p = nullptr;
    return 0;
  }
  uint64_t a = alloc_block(n, 1);
  if (!a) return ret(2);
  *p = (void *)a;
  return 0;
}
API int sim_cudaMallocHost(void **p, size_t n) { return sim_cudaHostAlloc(p, n, 0); }
API int sim_cudaFreeHost(void *p) {
  if (!p) return 0;
  flush_all();
  return free_block((uint64_t)p, 1 << 1) ? ret(1) : 0;
}
API int sim_cudaHostRegister(void *p, size_t n, unsigned) {
  std::lock_guard<std::mutex> g(memmu);
  mem[(uint64_t)p] = {n, 1, nullptr};
  return 0;
}
API int sim_cudaHostUnregister(void *p) { return free_block((uint64_t)p, 1 << 1) ? ret(1) : 0; }
API int sim_cudaHostGetDevicePointer(void **d, void *h, unsigned) {
  *d = h;
  return 0;
}
API int sim_cudaMemGetInfo(size_t *f, size_t *t) {
  CHECK_STICKY();
  std::lock_guard<std::mutex> g(memmu);
  *t = total_mem();
  *f = total_mem() - used;
  return 0;
}
static bool is_pinned(const void *p) {
  uint64_t lo;
  Block b;
  return find_block((uint64_t)p, lo, b) && b.kind == 1;
}
static int copy(void *d, const void *s, size_t n, int kind, void *st = nullptr, bool async = false) {
  CHECK_STICKY();
  if (n == 0) return 0;
  bool bad = false;
  bool dd = on_device(d, n, &bad), sd = on_device(s, n, &bad);
  if (bad) return ret(1);
  if (kind == 4) kind = sd ? (dd ? 3 : 2) : (dd ? 1 : 0);
  if ((kind == 1 && (!dd || sd)) || (kind == 2 && (!sd || dd)) || (kind == 3 && !(dd && sd)) ||
      (kind == 0 && (dd || sd))) {
    uint64_t lo;
    Block b;
    bool managed = (find_block((uint64_t)d, lo, b) && (b.kind == 3 || b.kind == 1)) ||
                   (find_block((uint64_t)s, lo, b) && (b.kind == 3 || b.kind == 1));
    if (!managed) return ret(1);
  }
  switch (kind) {
    case 1:
      cnt[C_H2D]++;
      cnt[C_H2D_BYTES] += n;
      break;
    case 2:
      cnt[C_D2H]++;
      cnt[C_D2H_BYTES] += n;
      break;
    case 3:
      cnt[C_D2D]++;
      cnt[C_D2D_BYTES] += n;
      break;
    default: cnt[C_H2H]++;
  }
  if (trace() || logon) {
    static const char *kn[] = {"h2h", "h2d", "d2h", "d2d"};
    note(std::string("memcpy ") + kn[kind & 3] + " " + std::to_string(n));
  }
  if (!async_mode()) {
    memmove(d, s, n);
    return 0;
  }
  if (kind == 1 && !is_pinned(s)) {
    auto b = std::make_shared<std::vector<char>>((const char *)s, (const char *)s + n);
    uint64_t k = enqueue(st, [=] { memcpy(d, b->data(), n); });
    if (!async) {
      std::lock_guard<std::recursive_mutex> g(qmu);
      run_until(qid(st), k);
    }
    return 0;
  }
  uint64_t k = enqueue(st, [=] { memmove(d, s, n); });
  if (!async || (kind == 2 && !is_pinned(d)) || kind == 0) {
    std::lock_guard<std::recursive_mutex> g(qmu);
    run_until(qid(st), k);
    CHECK_STICKY();
  }
  return 0;
}
API int sim_cudaMemcpy(void *d, const void *s, size_t n, int k) { return copy(d, s, n, k); }
API int sim_cudaMemcpyAsync(void *d, const void *s, size_t n, int k, void *st) {
  if (!okst(st)) return ret(400);
  return copy(d, s, n, k, st, true);
}
API int sim_cudaMemcpyPeer(void *d, int, const void *s, int, size_t n) { return copy(d, s, n, 3); }
API int sim_cudaMemcpyPeerAsync(void *d, int, const void *s, int, size_t n, void *st) {
  return copy(d, s, n, 3, st, true);
}
static int copy2d(char *d, size_t dp, const char *s, size_t sp, size_t w, size_t h, int k, void *st = nullptr,
                  bool async = false) {
  if (!w || !h) return 0;
  if (w > dp || w > sp) return ret(1);
  uint64_t keep[C_NUM];
  (void)keep;
  uint64_t a = cnt[C_H2D], b = cnt[C_D2H], c = cnt[C_D2D], e = cnt[C_H2H];
  int r = 0;
  for (size_t i = 0; i < h && !r; i++) r = copy(d + i * dp, s + i * sp, w, k, st, async);
  auto one = [&](int id, uint64_t old) {
    if (cnt[id] > old) cnt[id] = old + 1;
  };
  one(C_H2D, a);
  one(C_D2H, b);
  one(C_D2D, c);
  one(C_H2H, e);
  return r;
}
API int sim_cudaMemcpy2D(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, int k) {
  return copy2d((char *)d, dp, (const char *)s, sp, w, h, k);
}
API int sim_cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, int k, void *st) {
  return copy2d((char *)d, dp, (const char *)s, sp, w, h, k, st, true);
}
static int set_mem(void *p, int v, size_t n, void *st) {
  CHECK_STICKY();
  if (!n) return 0;
  bool bad = false;
  if (!on_device(p, n, &bad) || bad) return ret(1);
  cnt[C_MEMSET]++;
  note("memset " + std::to_string(n));
  enqueue(st, [=] { memset(p, v, n); });
  return 0;
}
API int sim_cudaMemset(void *p, int v, size_t n) { return set_mem(p, v, n, nullptr); }
API int sim_cudaMemsetAsync(void *p, int v, size_t n, void *st) { return set_mem(p, v, n, st); }
static bool badloc(cudaMemLocation l) { return l.type == cudaMemLocationTypeDevice && (l.id < 0 || l.id >= ndev()); }
API int sim_cudaMemPrefetchAsync(const void *, size_t, cudaMemLocation l, unsigned, void *) {
  return badloc(l) ? ret(101) : 0;
}
API int sim_cudaMemAdvise(const void *, size_t, int a, cudaMemLocation l) {
  return a < 1 || a > 6 ? ret(1) : badloc(l) ? ret(101) : 0;
}
API int sim_cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  uint64_t lo;
  Block b;
  if (!find_block((uint64_t)p, lo, b)) {
    a->type = cudaMemoryTypeUnregistered;
    a->device = -2;
    a->hostPointer = (void *)p;
    return 0;
  }
  a->type = b.kind == 1 ? cudaMemoryTypeHost : b.kind == 3 ? cudaMemoryTypeManaged : cudaMemoryTypeDevice;
  a->device = 0;
  a->devicePointer = (void *)p;
  a->hostPointer = (b.kind == 1 || b.kind == 3) ? (void *)p : nullptr;
  return 0;
}
static int pool_obj;
API int sim_cudaDeviceGetDefaultMemPool(void **p, int) {
  *p = &pool_obj;
  return 0;
}
API int sim_cudaDeviceGetMemPool(void **p, int) {
  *p = &pool_obj;
  return 0;
}
API int sim_cudaDeviceSetMemPool(int, void *) { return 0; }
API int sim_cudaMemPoolCreate(void **p, const void *) {
  *p = &pool_obj;
  return 0;
}
API int sim_cudaMemPoolDestroy(void *) { return 0; }
API int sim_cudaMemPoolTrimTo(void *, size_t keep) {
  std::lock_guard<std::mutex> g(memmu);
  pool_reserved = std::max<uint64_t>(pool_used, std::min<uint64_t>(pool_reserved, keep));
  return 0;
}
API int sim_cudaMemPoolGetAttribute(void *, int a, void *v) {
  std::lock_guard<std::mutex> g(memmu);
  switch (a) {
    case 1:
    case 2:
    case 3: *(int *)v = 1; break;
    case 4: *(uint64_t *)v = pool_threshold; break;
    case 5: *(uint64_t *)v = pool_reserved; break;
    case 6: *(uint64_t *)v = pool_reserved_high; break;
    case 7: *(uint64_t *)v = pool_used; break;
    case 8: *(uint64_t *)v = pool_used_high; break;
    default: return ret(1);
  }
  return 0;
}
API int sim_cudaMemPoolSetAttribute(void *, int a, void *v) {
  std::lock_guard<std::mutex> g(memmu);
  if (a == 4) pool_threshold = *(uint64_t *)v;
  return a >= 1 && a <= 8 ? 0 : ret(1);
}

// ---------------------------------------------------------------- device
API int sim_cudaDriverGetVersion(int *v) {
  *v = 13000;
  return 0;
}
API int sim_cudaRuntimeGetVersion(int *v) {
  *v = 13000;
  return 0;
}
API int cudaRuntimeGetVersion(int *v) {
  *v = 13000;
  return 0;
}
API int sim_cudaGetDevice(int *d) {
  *d = curdev;
  return 0;
}
API int sim_cudaSetDevice(int d) {
  if (d < 0 || d >= ndev()) return ret(101);
  curdev = d;
  return 0;
}
API int sim_cudaGetDeviceCount(int *n) {
  *n = ndev();
  return ndev() ? 0 : ret(100);
}
API int sim_cudaDeviceSynchronize() {
  cnt[C_DEVSYNC]++;
  note("device_sync");
  flush_all();
  CHECK_STICKY();
  return 0;
}
API int sim_cudaDeviceReset() { return 0; }
API int sim_cudaDeviceCanAccessPeer(int *r, int a, int b) {
  *r = a != b;
  return 0;
}
API int sim_cudaDeviceEnablePeerAccess(int, unsigned) { return 0; }
API int sim_cudaDeviceDisablePeerAccess(int) { return 0; }
API int sim_cudaDeviceGetLimit(size_t *v, int) {
  *v = 1 << 20;
  return 0;
}
API int sim_cudaDeviceSetLimit(int, size_t) { return 0; }
API int sim_cudaDeviceGetPCIBusId(char *s, int n, int d) {
  snprintf(s, n, "0000:%02X:00.0", d + 1);
  return 0;
}
API int sim_cudaDeviceGetByPCIBusId(int *d, const char *s) {
  unsigned a, b;
  if (sscanf(s, "%x:%x", &a, &b) != 2 || b < 1 || (int)b > ndev()) return ret(1);
  *d = b - 1;
  return 0;
}
API int sim_cudaDeviceGetStreamPriorityRange(int *lo, int *hi) {
  if (lo) *lo = 0;
  if (hi) *hi = -5;
  return 0;
}
static int attr(int a) {
  int cc = device_cc();
  switch (a) {
    case 1: return 1024;
    case 2:
    case 3: return 1024;
    case 4: return 64;
    case 5: return 2147483647;
    case 6:
    case 7: return 65535;
    case 8: return 49152;
    case 9: return 65536;
    case 10: return 32;
    case 11: return 2147483647;
    case 12: return 65536;
    case 13: return 1000000;
    case 14: return 512;
    case 15: return 1;
    case 16: return device_sms();
    case 19: return 1;
    case 31: return 1;
    case 33: return 1;
    case 36: return 1000000;
    case 37: return 64;
    case 38: return 1 << 20;
    case 39: return 1024;
    case 40: return 1;
    case 41: return 1;
    case 75: return cc / 10;
    case 76: return cc % 10;
    case 78: return 1;
    case 79:
    case 80: return 1;
    case 81: return 65536;
    case 82: return 65536;
    case 83: return 1;
    case 97: return 65536;
    case 106: return 16;
    case 115: return 1;
  }
  return 0;
}
API int sim_cudaDeviceGetAttribute(int *v, int a, int d) {
  if (d < 0 || d >= ndev()) return ret(101);
  if (a < 1 || a > 148) return ret(1);
  *v = attr(a);
  return 0;
}
API int sim_cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
  if (d < 0 || d >= ndev()) return ret(101);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "cudasim (CPU)");
  p->totalGlobalMem = total_mem();
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = device_cc() / 10;
  p->minor = device_cc() % 10;
  p->multiProcessorCount = device_sms();
  p->canMapHostMemory = 1;
  p->concurrentKernels = 1;
  p->unifiedAddressing = 1;
  p->maxThreadsPerMultiProcessor = 1024;
  p->sharedMemPerMultiprocessor = 65536;
  p->regsPerMultiprocessor = 65536;
  p->managedMemory = 1;
  p->sharedMemPerBlockOptin = 65536;
  p->l2CacheSize = 1 << 20;
  p->pciBusID = d + 1;
  p->memoryPoolsSupported = 1;
  p->asyncEngineCount = 1;
  p->textureAlignment = 512;
  p->maxBlocksPerMultiProcessor = 16;
  p->memoryBusWidth = 64;
  p->uuid.bytes[0] = 0x51;
  p->uuid.bytes[15] = (char)d;
  return 0;
}

// ---------------------------------------------------------------- streams and events
struct Stream {
  unsigned flags;
  int prio;
};
struct Event {
  unsigned flags;
  bool rec;
  double t;
  void *qs;
  uint64_t seq;
};
static std::set<void *> events;
static bool okev(void *e) {
  std::lock_guard<std::mutex> g(stmu);
  return events.count(e) != 0;
}
API int sim_cudaStreamCreateWithPriority(void **s, unsigned f, int p) {
  CHECK_STICKY();
  cnt[C_STREAMCREATE]++;
  auto *x = new Stream{f, p};
  {
    std::lock_guard<std::recursive_mutex> g(qmu);
    queues[x].blocking = !(f & 1);
  }
  std::lock_guard<std::mutex> g(stmu);
  streams.insert(x);
  *s = x;
  return 0;
}
API int sim_cudaStreamCreateWithFlags(void **s, unsigned f) { return sim_cudaStreamCreateWithPriority(s, f, 0); }
API int sim_cudaStreamCreate(void **s) { return sim_cudaStreamCreateWithPriority(s, 0, 0); }
API int sim_cudaStreamDestroy(void *s) {
  flush_stream(s);
  { std::lock_guard<std::recursive_mutex> g(qmu); }
  std::lock_guard<std::mutex> g(stmu);
  if (!streams.erase(s)) return ret(400);
  delete (Stream *)s;
  return 0;
}
API int sim_cudaStreamGetFlags(void *s, unsigned *f) {
  if (!okst(s)) return ret(400);
  *f = (uint64_t)s <= 2 ? 0 : ((Stream *)s)->flags;
  return 0;
}
API int sim_cudaStreamGetPriority(void *s, int *p) {
  if (!okst(s)) return ret(400);
  *p = (uint64_t)s <= 2 ? 0 : ((Stream *)s)->prio;
  return 0;
}
API int sim_cudaStreamSynchronize(void *s) {
  cnt[C_STREAMSYNC]++;
  note("stream_sync");
  if (!okst(s)) return ret(400);
  flush_stream(s);
  CHECK_STICKY();
  return 0;
}
static int step(void *qs, uint64_t seq) {
  std::lock_guard<std::recursive_mutex> g(qmu);
  Queue &q = queues[qs];
  if (q.done >= seq) return 0;
  run_until(qs, q.done + 1);
  return q.done >= seq ? 0 : 600;
}  // a poll lets one operation finish
API int sim_cudaStreamQuery(void *s) {
  if (!okst(s)) return ret(400);
  CHECK_STICKY();
  if (!async_mode()) return 0;
  uint64_t l;
  {
    std::lock_guard<std::recursive_mutex> g(qmu);
    Queue &q = queues[qid(s)];
    l = q.last;
    if (q.done >= l) return 0;
  }
  step(qid(s), l);
  return 600;
}
API int sim_cudaStreamAddCallback(void *s, void (*f)(void *, int, void *), void *u, unsigned) {
  flush_stream(s);
  f(s, 0, u);
  return 0;
}
API int sim_cudaLaunchHostFunc(void *s, void (*f)(void *), void *u) {
  flush_stream(s);
  f(u);
  return 0;
}
API int sim_cudaStreamWaitEvent(void *s, void *e, unsigned) {
  if (!okst(s) || !okev(e)) return ret(400);
  cnt[C_STREAMWAIT]++;
  auto *x = (Event *)e;
  if (async_mode() && x->rec) enqueue(s, nullptr, {x->qs, x->seq}, true);
  return 0;
}
API int sim_cudaStreamIsCapturing(void *, int *st) {
  *st = 0;
  return 0;
}
API int sim_cudaEventCreateWithFlags(void **e, unsigned f) {
  CHECK_STICKY();
  auto *x = new Event{f, false, 0, nullptr, 0};
  std::lock_guard<std::mutex> g(stmu);
  events.insert(x);
  *e = x;
  return 0;
}
API int sim_cudaEventCreate(void **e) { return sim_cudaEventCreateWithFlags(e, 0); }
API int sim_cudaEventDestroy(void *e) {
  if (async_mode() && okev(e)) {
    std::lock_guard<std::recursive_mutex> g(qmu);
    run_until(((Event *)e)->qs, ((Event *)e)->seq);
  }
  std::lock_guard<std::mutex> g(stmu);
  if (!events.erase(e)) return ret(400);
  delete (Event *)e;
  return 0;
}
API int sim_cudaEventRecord(void *e, void *s) {
  if (!okev(e) || !okst(s)) return ret(400);
  cnt[C_EVENTRECORD]++;
  auto *x = (Event *)e;
  x->rec = true;
  x->qs = qid(s);
  x->seq = enqueue(s, [x] {
    x->t = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
  });
  return 0;
}
API int sim_cudaEventSynchronize(void *e) {
  if (!okev(e)) return ret(400);
  cnt[C_EVENTSYNC]++;
  note("event_sync");
  if (async_mode()) {
    std::lock_guard<std::recursive_mutex> g(qmu);
    run_until(((Event *)e)->qs, ((Event *)e)->seq);
  }
  CHECK_STICKY();
  return 0;
}
API int sim_cudaEventQuery(void *e) {
  if (!okev(e)) return ret(400);
  cnt[C_EVENTQUERY]++;
  if (async_mode() && ((Event *)e)->rec) {
    bool p;
    {
      std::lock_guard<std::recursive_mutex> g(qmu);
      p = queues[((Event *)e)->qs].done < ((Event *)e)->seq;
    }
    if (p) {
      step(((Event *)e)->qs, ((Event *)e)->seq);
      return 600;
    }
  }
  return 0;
}
API int sim_cudaEventElapsedTime(float *ms, void *a, void *b) {
  if (!okev(a) || !okev(b)) return ret(400);
  auto *x = (Event *)a, *y = (Event *)b;
  if (!x->rec || !y->rec || ((x->flags | y->flags) & 2)) return ret(400);
  if (async_mode()) {
    std::lock_guard<std::recursive_mutex> g(qmu);
    if (queues[x->qs].done < x->seq || queues[y->qs].done < y->seq) return 600;
  }
  *ms = (float)(y->t - x->t);
  return 0;
}
API int sim_cudaProfilerStart() { return 0; }
API int sim_cudaProfilerStop() { return 0; }

// ---------------------------------------------------------------- driver: contexts, modules, launch
static int ctx_obj;
static thread_local void *curctx = nullptr;
// NVRTC looks for a driver: it is told that there is none (it only wants it for things not needed here)
API int cuInit(unsigned) { return 100; }
API int cuGetExportTable(const void **p, const void *) {
  if (p) *p = nullptr;
  return 500;
}
API int cuDriverGetVersion(int *v) {
  *v = 13000;
  return 0;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API int cuCtxGetCurrent(void **c) {
  if (!curctx) curctx = &ctx_obj;
  *c = curctx;
  return 0;
}
API int cuCtxSetCurrent(void *c) {
  curctx = c;
  return 0;
}
API int cuCtxCreate_v2(void **c, unsigned, int) {
  *c = &ctx_obj;
  curctx = *c;
  return 0;
}
API int cuCtxDestroy_v2(void *) { return 0; }
API int cuCtxGetDevice(int *d) {
  *d = curdev;
  return 0;
}
API int cuStreamGetCtx(void *, void **c) {
  *c = &ctx_obj;
  return 0;
}
struct Func {
  Module *m;
  Kernel *k;
};
static std::mutex modmu;
static std::map<Module *, std::vector<Func *>> mods;
API int cuModuleLoadData(void **m, const void *image) {
  if (sticky) return sticky;
  const char *s = (const char *)image;
  if (!memcmp(s, "\177ELF", 4) || *(const uint32_t *)s == 0xBA55ED50u || *(const uint32_t *)s == 0x466243b1u) {
    if (!quiet()) fprintf(stderr, "cudasim: only PTX can be loaded, not compiled device code\n");
    return 209;
  }
  std::string err;
  std::lock_guard<std::mutex> g(modmu);
  Module *x = module_load(s, err);
  if (!x) {
    if (!quiet()) fprintf(stderr, "cudasim: PTX rejected: %s\n", err.c_str());
    return 218;
  }
  cnt[C_MODULE]++;
  mods[x];
  *m = x;
  return 0;
}
API int cuModuleLoadDataEx(void **m, const void *image, unsigned, void *, void *) { return cuModuleLoadData(m, image); }
API int cuModuleLoad(void **m, const char *f) {
  FILE *h = fopen(f, "rb");
  if (!h) return 301;
  std::string s;
  char b[65536];
  size_t n;
  while ((n = fread(b, 1, sizeof b, h)) > 0) s.append(b, n);
  fclose(h);
  return cuModuleLoadData(m, s.c_str());
}
API int cuModuleUnload(void *m) {
  flush_all();
  std::lock_guard<std::mutex> g(modmu);
  auto it = mods.find((Module *)m);
  if (it == mods.end()) return 400;
  for (auto *f : it->second) delete f;
  mods.erase(it);
  module_free((Module *)m);
  return 0;
}
API int cuModuleGetFunction(void **f, void *m, const char *n) {
  std::lock_guard<std::mutex> g(modmu);
  auto it = mods.find((Module *)m);
  if (it == mods.end()) return 400;
  std::string err;
  Kernel *k = module_kernel((Module *)m, n, err);
  if (!k) return 500;
  if (!k->error.empty() && !quiet()) fprintf(stderr, "cudasim: kernel %s cannot run: %s\n", n, k->error.c_str());
  auto *x = new Func{(Module *)m, k};
  it->second.push_back(x);
  *f = x;
  return 0;
}
API int cuModuleGetGlobal_v2(uint64_t *p, size_t *n, void *m, const char *name) {
  auto *x = (Module *)m;
  auto it = x->vars.find(name);
  if (it == x->vars.end() || it->second.space == SHARED) return 500;
  if (p) *p = it->second.addr;
  if (n) *n = it->second.size;
  return 0;
}
static std::mutex runmu;
API int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shm, void *st, void **params, void **) {
  if (sticky) return sticky;
  if (!f) return 400;
  auto *x = (Func *)f;
  Kernel *k = x->k;
  if (!okst(st)) return 400;
  if (!gx || !gy || !gz || !bx || !by || !bz || gx > 2147483647u || gy > 65535 || gz > 65535 || bx > 1024 ||
      by > 1024 || bz > 64 || (uint64_t)bx * by * bz > 1024)
    return 1;
  if ((int)(bx * by * bz) > k->max_threads) return 701;
  if (shm > 49152u + 0 && (int)shm > k->max_dyn) return 1;
  if (k->shared_static + shm > 65536) return 1;
  std::vector<uint8_t> p(k->param_size + 16);
  for (size_t i = 0; i < k->params.size(); i++) {
    if (!params || !params[i]) return 1;
    memcpy(p.data() + k->params[i].off, params[i], k->params[i].size);
  }
  struct {
    uint32_t v[3];
    operator const uint32_t *() const { return v; }
  } g = {{gx, gy, gz}}, b = {{bx, by, bz}};
  std::string msg;
  int e;
  cnt[C_LAUNCH]++;
  if (trace() || logon)
    note("launch " + k->name + " grid " + std::to_string(gx) + "," + std::to_string(gy) + "," + std::to_string(gz) +
         " block " + std::to_string(bx) + "," + std::to_string(by) + "," + std::to_string(bz));
  if (async_mode() && k->error.empty()) {
    enqueue(st, [=] {
      std::string m2;
      int e2;
      {
        std::lock_guard<std::mutex> l(runmu);
        e2 = kernel_run(k, g, b, shm, p.data(), m2);
      }
      if (e2) set_sticky(e2, m2);
    });
    return 0;
  }
  {
    std::lock_guard<std::mutex> l(runmu);
    e = kernel_run(k, g, b, shm, p.data(), msg);
  }
  if (e == 801) {
    stickymsg = msg;
    if (!quiet()) fprintf(stderr, "cudasim: %s\n", msg.c_str());
    return 801;
  }
  if (e) set_sticky(e, msg);  // as on a real device: the launch itself succeeds, later calls fail
  return 0;
}
API int cuLaunchCooperativeKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                  unsigned shm, void *st, void **params) {
  if ((uint64_t)gx * gy * gz != 1) return 801;
  return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shm, st, params, nullptr);
}
API int cuFuncGetAttribute(int *v, int a, void *f) {
  auto *k = ((Func *)f)->k;
  switch (a) {
    case 0: *v = k->max_threads; break;
    case 1: *v = k->shared_static; break;
    case 3: *v = k->local_size; break;
    case 4: *v = 32; break;
    case 5:
    case 6: *v = device_cc(); break;
    case 8: *v = k->max_dyn ? k->max_dyn : 49152; break;
    default: *v = 0;
  }
  return 0;
}
API int cuFuncSetAttribute(void *f, int a, int v) {
  auto *k = ((Func *)f)->k;
  if (a == 8) {
    if (v < 0 || v > 65536) return 1;
    k->max_dyn = v;
  }
  return 0;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *, int bs, size_t) {
  *n = bs > 0 ? 1024 / bs : 0;
  if (*n > 16) *n = 16;
  return 0;
}
API int cuOccupancyMaxPotentialBlockSize(int *g, int *b, void *f, void *, size_t, int lim) {
  auto *k = ((Func *)f)->k;
  int x = k->max_threads;
  if (lim > 0 && lim < x) x = lim;
  *b = x;
  *g = device_sms();
  return 0;
}
struct Link {
  std::string s;
};
API int cuLinkCreate_v2(unsigned, void *, void *, void **s) {
  *s = new Link;
  return 0;
}
API int cuLinkAddData_v2(void *s, int type, void *d, size_t n, const char *, unsigned, void *, void *) {
  if (type != 1) return 801;
  ((Link *)s)->s.append((const char *)d, strnlen((const char *)d, n));
  return 0;
}
API int cuLinkAddFile_v2(void *, int, const char *, unsigned, void *, void *) { return 0; }
API int cuLinkComplete(void *s, void **o, size_t *n) {
  *o = (void *)((Link *)s)->s.c_str();
  *n = ((Link *)s)->s.size() + 1;
  return 0;
}
API int cuLinkDestroy(void *s) {
  delete (Link *)s;
  return 0;
}

// ---------------------------------------------------------------- patching of statically linked runtimes
static std::set<std::string> told;
extern "C" int cudasim_unsupported(const char *name) {
  {
    std::lock_guard<std::mutex> g(errmu);
    if (told.insert(name).second && !quiet()) fprintf(stderr, "cudasim: %s is not supported\n", name);
  }
  return ret(801);
}
static uint8_t *stub_page = nullptr;
static size_t stub_used = 0, stub_cap = 0;
static void *make_stub(const char *name) {
  if (!stub_page || stub_used + 32 > stub_cap) {
    stub_cap = 65536;
    stub_page =
        (uint8_t *)mmap(nullptr, stub_cap, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stub_used = 0;
    if (stub_page == MAP_FAILED) {
      stub_page = nullptr;
      return nullptr;
    }
  }
  uint8_t *p = stub_page + stub_used;
  stub_used += 32;
  char *n = strdup(name);
  void *t = (void *)&cudasim_unsupported;
  p[0] = 0x48;
  p[1] = 0xBF;
  memcpy(p + 2, &n, 8);
  p[10] = 0x48;
  p[11] = 0xB8;
  memcpy(p + 12, &t, 8);
  p[20] = 0xFF;
  p[21] = 0xE0;
  return p;
}
// writes "mov rax, target; jmp rax" over a function; returns 1 for a real replacement, 0 for a stub, -1 on failure
API int cudasim_patch(const char *name, uint64_t addr) {
  std::string s = std::string("sim_") + name;
  void *t = dlsym(RTLD_DEFAULT, s.c_str());
  static void *self = nullptr;
  if (!t) {
    if (!self) {
      Dl_info di;
      dladdr((void *)&cudasim_patch, &di);
      self = dlopen(di.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    if (self) t = dlsym(self, s.c_str());
  }
  int real = t != nullptr;
  if (!t) t = make_stub(name);
  if (!t) return -1;
  uint64_t pg = addr & ~4095ull;
  size_t len = ((addr + 12 + 4095) & ~4095ull) - pg;
  if (mprotect((void *)pg, len, PROT_READ | PROT_WRITE | PROT_EXEC)) return -1;
  uint8_t *p = (uint8_t *)addr;
  p[0] = 0x48;
  p[1] = 0xB8;
  memcpy(p + 2, &t, 8);
  p[10] = 0xFF;
  p[11] = 0xE0;
  mprotect((void *)pg, len, PROT_READ | PROT_EXEC);
  return real;
}

// ---------------------------------------------------------------- device code embedded in CuPy's own modules (thrust,
// cub, generators)
struct FatMod {
  const uint32_t *wrapper;
  Module *m = nullptr;
  bool tried = false;
  int arch = 0;
  std::string err;
};
struct HostFn {
  FatMod *fm;
  std::string name;
  Func *f = nullptr;
};
static std::mutex fatmu;
static std::map<const void *, HostFn> hostfns;
static std::set<FatMod *> fats;
static bool fat_load(FatMod *fm) {
  if (fm->tried) return fm->m;
  fm->tried = true;
  const uint8_t *d = *(const uint8_t *const *)(fm->wrapper + 2);
  if (*(const uint32_t *)d != 0xBA55ED50u) {
    fm->err = "no fat binary";
    return false;
  }
  uint16_t hs;
  uint64_t size;
  memcpy(&hs, d + 6, 2);
  memcpy(&size, d + 8, 8);
  const uint8_t *q = d + hs, *end = q + size;
  while (q < end) {
    uint16_t kind;
    uint32_t h, csz, arch;
    uint64_t sz, flags, raw;
    memcpy(&kind, q, 2);
    memcpy(&h, q + 4, 4);
    memcpy(&sz, q + 8, 8);
    memcpy(&csz, q + 16, 4);
    memcpy(&arch, q + 28, 4);
    memcpy(&flags, q + 40, 8);
    memcpy(&raw, q + 56, 8);
    if (kind == 1) {
      std::string text;
      const uint8_t *pay = q + h;
      if (csz == 0) text.assign((const char *)pay, sz);
      else if (*(const uint32_t *)pay == 0xFD2FB528u) {
        void *z = dlopen("libzstd.so.1", RTLD_NOW);
        auto dec = z ? (size_t (*)(void *, size_t, const void *, size_t))dlsym(z, "ZSTD_decompress") : nullptr;
        if (!dec) {
          fm->err = "libzstd.so.1 is needed to read embedded PTX";
          return false;
        }
        text.resize(raw);
        size_t r = dec(&text[0], raw, pay, csz);
        if (r != raw) {
          fm->err = "embedded PTX does not decompress";
          return false;
        }
      } else {
        fm->err = "unknown compression of embedded PTX";
        return false;
      }
      std::string err;
      std::lock_guard<std::mutex> g(modmu);
      fm->m = module_load(text.c_str(), err);
      if (!fm->m) {
        fm->err = err;
        return false;
      }
      fm->arch = arch;
      return true;
    }
    if (!h) break;
    q += h + sz;
  }
  fm->err = "no PTX in the embedded device code";
  return false;
}
static Func *host_func(const void *p) {
  std::lock_guard<std::mutex> g(fatmu);
  auto it = hostfns.find(p);
  if (it == hostfns.end()) return nullptr;
  if (it->second.f) return it->second.f;
  if (!fat_load(it->second.fm)) {
    if (!quiet()) fprintf(stderr, "cudasim: %s\n", it->second.fm->err.c_str());
    return nullptr;
  }
  std::string err;
  std::lock_guard<std::mutex> g2(modmu);
  Kernel *k = module_kernel(it->second.fm->m, it->second.name, err);
  if (!k) {
    if (!quiet()) fprintf(stderr, "cudasim: %s\n", err.c_str());
    return nullptr;
  }
  if (!k->error.empty() && !quiet())
    fprintf(stderr, "cudasim: kernel %s cannot run: %s\n", k->name.c_str(), k->error.c_str());
  return it->second.f = new Func{it->second.fm->m, k};
}
// builds every kernel embedded in the patched modules; returns how many cannot run and prints why
API int cudasim_check_embedded(int *total) {
  std::lock_guard<std::mutex> g(fatmu);
  std::map<std::string, int> why;
  int bad = 0;
  *total = 0;
  for (auto *fm : fats) {
    if (!fat_load(fm)) {
      fprintf(stderr, "cudasim: %s\n", fm->err.c_str());
      continue;
    }
    for (auto &n : module_entries(fm->m)) {
      std::string e;
      Kernel *k = module_kernel(fm->m, n, e);
      ++*total;
      if (!k || !k->error.empty()) {
        bad++;
        std::string w = k ? k->error : e;
        why[w.substr(0, w.find('%'))]++;
      }
    }
  }
  for (auto &w : why) fprintf(stderr, "%6d  %s\n", w.second, w.first.c_str());
  return bad;
}
API void **sim___cudaRegisterFatBinary(void *w) {
  auto *f = new FatMod;
  f->wrapper = (const uint32_t *)w;
  std::lock_guard<std::mutex> g(fatmu);
  fats.insert(f);
  return (void **)f;
}
API void sim___cudaRegisterFatBinaryEnd(void **) {}
API void sim___cudaUnregisterFatBinary(void **) {}
API void sim___cudaRegisterFunction(void **h, const void *host, char *, const char *name, int, void *, void *, void *,
                                    void *, int *) {
  std::lock_guard<std::mutex> g(fatmu);
  if (fats.count((FatMod *)h)) hostfns[host] = {(FatMod *)h, name, nullptr};
}
API void sim___cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
API void sim___cudaRegisterManagedVar(void **, void **, char *, const char *, int, size_t, int, int) {}
API void sim___cudaRegisterHostVar(void **, const char *, char *, size_t) {}
API char sim___cudaInitModule(void **) { return 1; }
API int sim___cudaGetKernel(void **k, const void *f) {
  *k = (void *)f;
  return 0;
}
struct D3 {
  unsigned x, y, z;
};
struct Conf {
  D3 g, b;
  size_t shm;
  void *st;
};
static thread_local std::vector<Conf> confs;
API unsigned sim___cudaPushCallConfiguration(D3 g, D3 b, size_t shm, void *st) {
  confs.push_back({g, b, shm, st});
  return 0;
}
API int sim___cudaPopCallConfiguration(D3 *g, D3 *b, size_t *shm, void *st) {
  if (confs.empty()) return ret(9);
  auto c = confs.back();
  confs.pop_back();
  *g = c.g;
  *b = c.b;
  *shm = c.shm;
  *(void **)st = c.st;
  return 0;
}
API int sim_cudaLaunchKernel(const void *f, D3 g, D3 b, void **args, size_t shm, void *st) {
  CHECK_STICKY();
  Func *x = host_func(f);
  if (!x) {
    set_sticky(801, "embedded kernel cannot be loaded");
    return ret(98);
  }
  if (!x->k->error.empty()) {
    set_sticky(801, "kernel " + x->k->name + ": " + x->k->error);
    return ret(801);
  }
  return ret(cuLaunchKernel(x, g.x, g.y, g.z, b.x, b.y, b.z, shm, st, args, nullptr));
}
API int sim___cudaLaunchKernel(const void *f, D3 g, D3 b, void **args, size_t shm, void *st) {
  return sim_cudaLaunchKernel(f, g, b, args, shm, st);
}
API int sim_cudaLaunchKernelExC(const Conf *c, const void *f, void **args) {
  return sim_cudaLaunchKernel(f, c->g, c->b, args, c->shm, c->st);
}
API int sim_cudaFuncGetAttributes(cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  Func *x = host_func(f);
  if (!x) return ret(98);
  std::lock_guard<std::mutex> g(fatmu);
  int arch = hostfns[f].fm->arch;
  a->sharedSizeBytes = x->k->shared_static;
  a->localSizeBytes = x->k->local_size;
  a->maxThreadsPerBlock = x->k->max_threads;
  a->numRegs = 32;
  a->ptxVersion = arch;
  a->binaryVersion = arch;
  a->maxDynamicSharedSizeBytes = 49152;
  return 0;
}
API int sim_cudaFuncSetAttribute(const void *f, int a, int v) {
  Func *x = host_func(f);
  if (!x) return ret(98);
  return ret(cuFuncSetAttribute(x, a, v));
}
API int sim_cudaFuncSetCacheConfig(const void *, int) { return 0; }
API int sim_cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int bs, size_t s) {
  (void)f;
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(n, nullptr, bs, s);
}
API int sim_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int bs, size_t s, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(n, nullptr, bs, s);
}
