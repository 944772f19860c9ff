// Handlers of clocks, printf, assert and trap.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <chrono>
#include <cstdio>

namespace sim {
namespace {

void nop(Block &, const Instruction &) {}
void clock(Block &b, const Instruction &i) {  // host nanoseconds: they grow, and mean nothing else
  const uint64_t now = std::chrono::steady_clock::now().time_since_epoch().count();
  uint64_t *d = b.reg(i.dst[0]);
  each(b, [&](uint32_t t) { d[t] = i.width == 4 ? (uint32_t)now : now; });
}

std::string read_string(Block &b, const Instruction &i, uint32_t thread, uint64_t address) {
  std::string text;
  while (const char c = *(const char *)b.at(address++, 1, i, thread)) text += c;
  return text;
}
// One thread's printf. The arguments lie one after another, each aligned to its size.
std::string format(Block &b, const Instruction &i, uint32_t thread, const std::string &pattern, uint64_t argument) {
  const auto next = [&](auto value) {
    argument = (argument + sizeof value - 1) & ~(uint64_t)(sizeof value - 1);
    memcpy(&value, b.at(argument, sizeof value, i, thread), sizeof value);
    argument += sizeof value;
    return value;
  };
  const auto print = [](const std::string &conversion, auto value) {
    char text[512];
    snprintf(text, sizeof text, conversion.c_str(), value);
    return std::string(text);
  };
  std::string out;
  for (size_t k = 0; k < pattern.size(); k++) {
    const size_t end = pattern[k] == '%' ? pattern.find_first_of("%diouxXeEfFgGaAcsp", k + 1) : std::string::npos;
    if (end == std::string::npos) {
      out += pattern[k];
      continue;
    }
    const std::string conversion = pattern.substr(k, end - k + 1);
    k = end;
    const bool is_long = conversion.find('l') != std::string::npos;
    if (conversion.find('*') != std::string::npos) throw Fault(NOT_SUPPORTED, "printf with a width of *");
    switch (pattern[end]) {
      case '%': out += '%'; break;
      case 's': out += print(conversion, read_string(b, i, thread, next(uint64_t())).c_str()); break;
      case 'p': out += print(conversion, (void *)next(uint64_t())); break;
      case 'd':
      case 'i':
      case 'o':
      case 'u':
      case 'x':
      case 'X':
      case 'c': out += is_long ? print(conversion, next(uint64_t())) : print(conversion, next(uint32_t())); break;
      default: out += print(conversion, next(double()));
    }
  }
  return out;
}
void printf_of_kernel(Block &b, const Instruction &i) {
  uint64_t *d = b.reg_or_null(i.dst[0]);
  const uint64_t *pattern = b.reg(i.src[0]), *arguments = b.reg(i.src[1]);
  each(b, [&](uint32_t t) {
    fputs(format(b, i, t, read_string(b, i, t, pattern[t]), arguments[t]).c_str(), stdout);
    if (d) d[t] = 0;
  });
  fflush(stdout);
}
void assert_failed(Block &b, const Instruction &) {
  throw Fault(ASSERT, "kernel " + b.kernel->name + ": device-side assert");
}
void trap(Block &b, const Instruction &) { throw Fault(LAUNCH_FAILED, "kernel " + b.kernel->name + ": trap"); }

}  // namespace

Handler nop_handler() { return nop; }
Handler clock_handler() { return clock; }
Handler printf_handler() { return printf_of_kernel; }
Handler assert_handler() { return assert_failed; }
Handler trap_handler() { return trap; }

}  // namespace sim
