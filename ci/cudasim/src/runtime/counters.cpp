#include "runtime/counters.h"
#include "common/api.h"
#include "common/settings.h"
#include "ptx/program.h"
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

namespace sim {
namespace {

const char *const names[COUNTERS] = {
    "kernel_launch", "h2d",          "d2h",         "d2d",         "h2h",        "h2d_bytes",    "d2h_bytes",
    "d2d_bytes",     "memset",       "device_sync", "stream_sync", "event_sync", "event_record", "stream_wait_event",
    "malloc",        "free",         "host_alloc",  "module_load", "gemm",       "blas_other",   "curand",
    "event_query",   "stream_create"};
std::atomic<uint64_t> values[COUNTERS];

std::mutex log_mutex;
std::vector<std::string> log_lines;
std::atomic<int> loggers{0};  // cudasim.count(log=True) may be nested

}  // namespace

void count(Counter c, uint64_t by) { values[c] += by; }
bool noting() { return tracing() || loggers > 0; }
void note(const std::string &text) {
  if (tracing()) fprintf(stderr, "cudasim: %s\n", text.c_str());
  if (loggers == 0) return;
  std::lock_guard<std::mutex> lock(log_mutex);
  log_lines.push_back(text);
}

}  // namespace sim

using namespace sim;

API int cudasim_counter_count() { return COUNTERS; }
API const char *cudasim_counter_name(int c) { return c >= 0 && c < COUNTERS ? names[c] : nullptr; }
API uint64_t cudasim_counter_value(int c) { return c >= 0 && c < COUNTERS ? values[c].load() : 0; }
API void cudasim_counter_reset() {
  for (auto &value : values) value = 0;
}
API void cudasim_count(const char *counter) {
  for (int c = 0; c < COUNTERS; c++)
    if (!strcmp(names[c], counter)) count((Counter)c);
}
API void cudasim_note(const char *text) {
  if (noting()) note(text);
}
API uint64_t cudasim_instructions() { return instructions_run(); }

// Starts or ends a log; returns how many lines there are. The last one that ends it throws the lines away.
API int cudasim_log_start() {
  std::lock_guard<std::mutex> lock(log_mutex);
  loggers++;
  return (int)log_lines.size();
}
API void cudasim_log_end() {
  std::lock_guard<std::mutex> lock(log_mutex);
  if (--loggers == 0) log_lines.clear();
}
API int cudasim_log_size() {
  std::lock_guard<std::mutex> lock(log_mutex);
  return (int)log_lines.size();
}
API const char *cudasim_log_get(int k) {
  static thread_local std::string line;  // another thread may lengthen the log while the caller reads
  std::lock_guard<std::mutex> lock(log_mutex);
  if (k < 0 || k >= (int)log_lines.size()) return nullptr;
  line = log_lines[k];
  return line.c_str();
}
