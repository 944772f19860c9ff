// Handlers that touch memory. Every address is checked by Block::at.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <type_traits>

namespace sim {

bool Block::find_range(uint64_t address, unsigned bytes) {
  const auto within = [&](uint64_t start, uint64_t size) {
    // not `address + bytes <= start + size`: just below 2^64 that would wrap
    const bool inside = address - start < size && bytes <= size - (address - start);
    if (inside) range_start = start, range_size = size;
    return inside;
  };
  if (within((uint64_t)shared, shared_bytes) || within((uint64_t)parameters, parameter_bytes)) return true;
  if (local && within((uint64_t)local, local_bytes * stride)) return true;
  uint64_t start, size;
  return find_allocation(address, start, size) && within(start, size);
}
void Block::bad_address(uint64_t address, unsigned bytes, const Instruction &i, uint32_t thread, bool write) {
  char text[600];
  snprintf(text, sizeof text, "kernel %s: invalid %s of %u bytes at 0x%llx by thread %u of block (%u,%u,%u): %s",
           kernel->name.c_str(), write ? "write" : "read", bytes, (unsigned long long)address, thread, index.x, index.y,
           index.z, i.text.c_str());
  throw Fault(ILLEGAL_ADDRESS, text);
}
void Block::misaligned(uint64_t address, const Instruction &i) {
  char text[400];
  snprintf(text, sizeof text, "kernel %s: misaligned address 0x%llx: %s", kernel->name.c_str(),
           (unsigned long long)address, i.text.c_str());
  throw Fault(MISALIGNED_ADDRESS, text);
}

namespace {

template <class T>
inline uint64_t load_from(const uint8_t *p) {  // signed types are extended: the register may be wider
  T value;
  memcpy(&value, p, sizeof(T));
  return std::is_signed_v<T> ? (uint64_t)(int64_t)value : (uint64_t)value;
}
template <class T>
void load(Block &b, const Instruction &i) {
  const uint64_t *address = b.reg(i.src[0]);
  if (i.count == 1) {
    uint64_t *d = b.reg(i.dst[0]);
    each(b, [&](uint32_t t) {
      d[t] = load_from<T>(b.at(address[t] + i.immediate + b.base(i.space, t), sizeof(T), i, t));
    });
    return;
  }
  each(b, [&](uint32_t t) {
    const uint8_t *p = b.at(address[t] + i.immediate + b.base(i.space, t), sizeof(T) * i.count, i, t);
    for (int k = 0; k < i.count; k++)
      if (i.dst[k] >= 0) b.reg(i.dst[k])[t] = load_from<T>(p + k * sizeof(T));
  });
}
template <class T>
void store(Block &b, const Instruction &i) {
  const uint64_t *address = b.reg(i.src[0]);
  if (i.count == 1) {
    const uint64_t *x = b.reg(i.src[1]);
    each(b, [&](uint32_t t) {
      uint8_t *p = b.at(address[t] + i.immediate + b.base(i.space, t), sizeof(T), i, t, true);
      const T value = (T)x[t];
      memcpy(p, &value, sizeof(T));
    });
    return;
  }
  each(b, [&](uint32_t t) {
    uint8_t *p = b.at(address[t] + i.immediate + b.base(i.space, t), sizeof(T) * i.count, i, t, true);
    for (int k = 0; k < i.count; k++) {
      const T value = (T)b.reg(i.src[1 + k])[t];
      memcpy(p + k * sizeof(T), &value, sizeof(T));
    }
  });
}
void to_generic(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [&](uint32_t t) { d[t] = x[t] + b.base(i.space, t); });
}
void from_generic(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [&](uint32_t t) { d[t] = x[t] - b.base(i.space, t); });
}
void isspacep(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [&](uint32_t t) {
    const bool shared = x[t] - (uint64_t)b.shared < b.shared_bytes;
    const bool local = b.local && x[t] - (uint64_t)b.local < b.local_bytes * b.stride;
    const bool param = x[t] - (uint64_t)b.parameters < b.parameter_bytes;
    switch (i.space) {
      case SHARED: d[t] = shared; break;
      case LOCAL: d[t] = local; break;
      case PARAM: d[t] = param; break;
      case CONST: d[t] = false; break;  // constants have ordinary global addresses here
      default: d[t] = !shared && !local && !param;
    }
  });
}

// One thread after another: no other thread can come between the read and the write.
template <class T, class Change>
inline void change(Block &b, const Instruction &i, Change new_value) {
  const uint64_t *address = b.reg(i.src[0]);
  uint64_t *d = b.reg_or_null(i.dst[0]);
  each(b, [&](uint32_t t) {
    uint8_t *p = b.at(address[t] + i.immediate + b.base(i.space, t), sizeof(T), i, t, true);
    T old;
    memcpy(&old, p, sizeof(T));
    const T changed = new_value(old, t);
    memcpy(p, &changed, sizeof(T));
    if (d) d[t] = pack<T>(old);
  });
}
template <class T>
T plus(T x, T y) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) return T((double)x + (double)y);
  else if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) return T(std::make_unsigned_t<T>(x) + y);
  else return T(x + y);
}
template <class T, AtomicOp op>
void atomic(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[1]), *y = b.reg_or_null(i.src[2]);
  change<T>(b, i, [=](T old, uint32_t t) -> T {
    const T value = unpack<T>(x[t]);
    if constexpr (op == ATOMIC_ADD) return plus(old, value);
    else if constexpr (op == ATOMIC_EXCH) return value;
    else if constexpr (op == ATOMIC_MIN) return value < old ? value : old;
    else if constexpr (op == ATOMIC_MAX) return old < value ? value : old;
    else if constexpr (op == ATOMIC_AND) return old & value;
    else if constexpr (op == ATOMIC_OR) return old | value;
    else if constexpr (op == ATOMIC_XOR) return old ^ value;
    else if constexpr (op == ATOMIC_CAS) return old == value ? unpack<T>(y[t]) : old;
    else if constexpr (op == ATOMIC_INC) return old >= value ? T(0) : T(old + 1);
    else return old == 0 || old > value ? value : T(old - 1);
  });
}
template <class H>
void atomic_add_pair(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[1]);
  change<Pair<H>>(b, i, [=](Pair<H> old, uint32_t t) {
    const auto value = unpack<Pair<H>>(x[t]);
    return Pair<H>{plus(old.low, value.low), plus(old.high, value.high)};
  });
}
template <class T, AtomicOp... ops>
Handler pick_atomic(AtomicOp wanted) {
  Handler found = nullptr;
  ((wanted == ops ? (found = atomic<T, ops>, 0) : 0), ...);
  return found;
}

}  // namespace

Handler load_handler(Type t) {
  switch (t) {
    case U8:
    case B8: return load<uint8_t>;
    case S8: return load<int8_t>;
    case PRED:
    case B128: return nullptr;
    default: break;
  }
  if (!is_float(t)) return for_integer(t, [](auto x) -> Handler { return load<decltype(x)>; });
  switch (size_of(t)) {
    case 2: return load<uint16_t>;
    case 4: return load<uint32_t>;
    default: return load<uint64_t>;
  }
}
Handler store_handler(Type t) {
  return for_width(t, [](auto x) -> Handler { return store<decltype(x)>; });
}
Handler cvta_handler(Space space, bool to_space) {
  if (space != SHARED && space != LOCAL) return mov_handler();  // the others have generic addresses already
  return to_space ? from_generic : to_generic;
}
Handler isspacep_handler() { return isspacep; }
Handler atomic_handler(AtomicOp op, Type t) {
  if (t == F16X2) return op == ATOMIC_ADD ? atomic_add_pair<Half> : nullptr;
  if (t == BF16X2) return op == ATOMIC_ADD ? atomic_add_pair<BFloat16> : nullptr;
  if (is_float(t))
    return for_float(t, [op](auto x) -> Handler { return pick_atomic<decltype(x), ATOMIC_ADD, ATOMIC_EXCH>(op); });
  return for_integer(t, [op](auto x) -> Handler {
    return pick_atomic<decltype(x), ATOMIC_ADD, ATOMIC_MIN, ATOMIC_MAX, ATOMIC_AND, ATOMIC_OR, ATOMIC_XOR, ATOMIC_EXCH,
                       ATOMIC_CAS, ATOMIC_INC, ATOMIC_DEC>(op);
  });
}

}  // namespace sim
