#include "common/settings.h"
#include "common/api.h"
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sim {
namespace {

bool flag(const char *name) {
  const char *text = getenv(name);
  return text && *text && strcmp(text, "0") != 0;
}
long long number(const char *name, long long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoll(text, nullptr, 0) : otherwise;
}
std::atomic<bool> &checks_races() {
  static std::atomic<bool> value{flag("CUDASIM_RACECHECK")};
  return value;
}

}  // namespace

bool quiet() {
  static const bool value = flag("CUDASIM_QUIET");
  return value;
}
bool tracing() {
  static const bool value = flag("CUDASIM_TRACE");
  return value;
}
bool late() {
  static const bool value = flag("CUDASIM_ASYNC");
  return value;
}
bool race_check() { return checks_races(); }
uint64_t device_bytes() {
  static const uint64_t value = (uint64_t)number("CUDASIM_MEM", 4ll << 30);
  return value;
}
int poison() {
  static const int value = (int)number("CUDASIM_POISON", 0xFF);
  return value;
}
uint64_t max_instructions() {
  static const uint64_t value = (uint64_t)number("CUDASIM_MAX_INS", 20'000'000'000);
  return value;
}
int compute_capability() {
  static const int value = (int)number("CUDASIM_CC", 75);
  return value;
}
int device_count() {
  static const int value = (int)number("CUDASIM_DEVICES", 1);
  return value;
}

void say(const char *format, ...) {
  if (quiet()) return;
  va_list arguments;
  va_start(arguments, format);
  fputs("cudasim: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

}  // namespace sim

API int cudasim_set_race_check(int on) { return sim::checks_races().exchange(on != 0); }  // returns what it was
