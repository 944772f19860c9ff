// One block of threads while it runs, and the loops that the handlers are made of.
#pragma once
#include "common/small_floats.h"
#include "ptx/program.h"
#include <stdexcept>

namespace sim {

// The CUresult codes with which a kernel can end.
enum FaultCode {
  ILLEGAL_ADDRESS = 700,
  LAUNCH_TIMEOUT = 702,
  ASSERT = 710,
  MISALIGNED_ADDRESS = 716,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  UNKNOWN = 999
};

struct Fault : std::runtime_error {
  int code;
  Fault(int c, const std::string &message) : std::runtime_error(message), code(c) {}
};

struct Block {
  const Kernel *kernel = nullptr;
  uint64_t *registers = nullptr;  // slot after slot, each with one word per thread
  uint32_t threads = 0;
  uint32_t stride = 0;  // threads rounded up to whole warps: a warp instruction may read lanes beyond the last thread
  // Threads that the current instruction is for: all of them, or those listed.
  bool all_active = true;
  uint32_t active_count = 0;
  const uint16_t *active = nullptr;
  std::vector<uint32_t> live;  // a bit per thread that has not exited, a word per warp

  Extent grid{}, size{}, index{};
  uint8_t *shared = nullptr;
  uint64_t shared_bytes = 0;
  uint8_t *local = nullptr;
  uint64_t local_bytes = 0;  // of one thread
  const uint8_t *parameters = nullptr;
  uint64_t parameter_bytes = 0;

  uint64_t *reg(int slot) const { return registers + (size_t)slot * stride; }
  uint64_t *reg_or_null(int slot) const { return slot < 0 ? nullptr : reg(slot); }

  // Where the addresses of a space start: shared and local variables are numbered from 0.
  uint64_t base(Space space, uint32_t thread) const {
    if (space == SHARED) return (uint64_t)shared;
    return space == LOCAL ? (uint64_t)local + (uint64_t)thread * local_bytes : 0;
  }
  // The host memory behind an address, or a fault. The range that was right last time is tried first.
  uint8_t *at(uint64_t address, unsigned bytes, const Instruction &i, uint32_t thread, bool write = false) {
    const uint64_t offset = address - range_start;
    if (__builtin_expect(!(offset < range_size && offset + bytes <= range_size), 0))
      if (!find_range(address, bytes)) bad_address(address, bytes, i, thread, write);
    if (__builtin_expect(address & (bytes - 1), 0)) misaligned(address, i);
    return (uint8_t *)address;
  }

 private:
  uint64_t range_start = 1, range_size = 0;
  bool find_range(uint64_t address, unsigned bytes);
  [[noreturn]] void bad_address(uint64_t address, unsigned bytes, const Instruction &, uint32_t thread, bool write);
  [[noreturn]] void misaligned(uint64_t address, const Instruction &);
};

// Calls f(thread) for each active thread, in order.
template <class F>
__attribute__((always_inline)) inline void each(const Block &b, F f) {
  if (b.all_active) {
    const uint32_t n = b.threads;
    for (uint32_t t = 0; t < n; ++t) f(t);
  } else {
    for (uint32_t k = 0; k < b.active_count; ++k) f((uint32_t)b.active[k]);
  }
}

// Handlers made of a function of one, two or three values: Op::f.
template <class T, class Op>
void map1(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [=](uint32_t t) { d[t] = pack<T>(Op::template f<T>(unpack<T>(x[t]))); });
}
template <class T, class Op>
void map2(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  each(b, [=](uint32_t t) { d[t] = pack<T>(Op::template f<T>(unpack<T>(x[t]), unpack<T>(y[t]))); });
}
template <class T, class Op>
void map3(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  each(b, [=](uint32_t t) { d[t] = pack<T>(Op::template f<T>(unpack<T>(x[t]), unpack<T>(y[t]), unpack<T>(z[t]))); });
}
// The same for the two halves of a register.
template <class T, class Op>
struct OnPair {
  template <class P>
  static P f(P x) {
    return P{Op::template f<T>(x.low), Op::template f<T>(x.high)};
  }
  template <class P>
  static P f(P x, P y) {
    return P{Op::template f<T>(x.low, y.low), Op::template f<T>(x.high, y.high)};
  }
  template <class P>
  static P f(P x, P y, P z) {
    return P{Op::template f<T>(x.low, y.low, z.low), Op::template f<T>(x.high, y.high, z.high)};
  }
};

// Call f with a value of the C++ type of t, for the types that it names; else return null.
template <class F>
Handler for_width(Type t, F f) {
  switch (size_of(t)) {
    case 1: return f(uint8_t());
    case 2: return f(uint16_t());
    case 4: return f(uint32_t());
    case 8: return f(uint64_t());
    default: return nullptr;
  }
}
template <class F>
Handler for_integer(Type t, F f) {
  switch (t) {
    case U16:
    case B16: return f(uint16_t());
    case S16: return f(int16_t());
    case U32:
    case B32: return f(uint32_t());
    case S32: return f(int32_t());
    case U64:
    case B64: return f(uint64_t());
    case S64: return f(int64_t());
    default: return nullptr;
  }
}
// As for_integer, without the 16-bit types.
template <class F>
Handler for_wide_integer(Type t, F f) {
  return size_of(t) == 2 ? nullptr : for_integer(t, f);
}
template <class F>
Handler for_float(Type t, F f) {
  switch (t) {
    case F32: return f(float());
    case F64: return f(double());
    case F16: return f(Half());
    case BF16: return f(BFloat16());
    default: return nullptr;
  }
}

}  // namespace sim
