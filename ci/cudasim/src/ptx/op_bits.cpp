// Handlers that move and combine bits.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <algorithm>
#include <type_traits>

namespace sim {
namespace {

struct And {
  template <class T>
  static T f(T x, T y) {
    return x & y;
  }
};
struct Or {
  template <class T>
  static T f(T x, T y) {
    return x | y;
  }
};
struct Xor {
  template <class T>
  static T f(T x, T y) {
    return x ^ y;
  }
};
struct Not {
  template <class T>
  static T f(T x) {
    return T(~x);
  }
};
struct IsZero {
  template <class T>
  static T f(T x) {
    return x == 0;
  }
};

void mov(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [=](uint32_t t) { d[t] = x[t]; });
}
uint64_t low_bits(int count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }
void join(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const int bits = i.width * 8;
  const uint64_t mask = low_bits(bits);
  each(b, [&](uint32_t t) {
    uint64_t value = 0;
    for (int k = 0; k < i.count; k++) value |= (b.reg(i.src[k])[t] & mask) << (k * bits);
    d[t] = value;
  });
}
void split(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[0]);
  const int bits = i.width * 8;
  const uint64_t mask = low_bits(bits);
  each(b, [&](uint32_t t) {
    const uint64_t value = x[t];  // before a destination overwrites it
    for (int k = 0; k < i.count; k++)
      if (i.dst[k] >= 0) b.reg(i.dst[k])[t] = (value >> (k * bits)) & mask;
  });
}
template <class T>
void shl(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  each(b, [=](uint32_t t) {
    const uint32_t by = (uint32_t)y[t];
    d[t] = by >= 8 * sizeof(T) ? 0 : pack<T>(T(unpack<T>(x[t]) << by));
  });
}
template <class T>
void shr(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  each(b, [=](uint32_t t) {
    const uint32_t by = (uint32_t)y[t];
    const T value = unpack<T>(x[t]), sign = std::is_signed_v<T> && value < 0 ? T(-1) : T(0);
    d[t] = pack<T>(by >= 8 * sizeof(T) ? sign : T(value >> by));
  });
}
void shf(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *low = b.reg(i.src[0]), *high = b.reg(i.src[1]), *y = b.reg(i.src[2]);
  const bool right = i.mode & 1, wrap = i.mode & 2;
  each(b, [=](uint32_t t) {
    const uint32_t n = (uint32_t)y[t], by = wrap ? n & 31 : std::min(n, 32u);
    const uint64_t value = (uint64_t)(uint32_t)high[t] << 32 | (uint32_t)low[t];
    d[t] = right ? (uint32_t)(value >> by) : (uint32_t)((value << by) >> 32);
  });
}
template <class T>
void bfe(Block &b, const Instruction &i) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t width = 8 * sizeof(T);
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  each(b, [=](uint32_t t) {
    const uint32_t start = (uint8_t)y[t], length = (uint8_t)z[t];
    const U value = unpack<U>(x[t]);
    U field = 0;
    if (length) {
      const U shifted = start >= width ? U(0) : U(value >> start);
      field = length >= width ? shifted : U(shifted & ((U(1) << length) - 1));
      // beyond the top bit, a signed field is filled with its last bit
      const uint32_t last = std::min(start + length - 1, width - 1);
      const uint32_t kept = std::min(length, start < width ? width - start : 0);
      if (std::is_signed_v<T> && ((value >> last) & 1) && kept < width) field |= U(~U(0)) << kept;
    }
    d[t] = pack<U>(field);
  });
}
template <class U>
void bfi(Block &b, const Instruction &i) {
  constexpr uint32_t width = 8 * sizeof(U);
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *field = b.reg(i.src[0]), *x = b.reg(i.src[1]), *y = b.reg(i.src[2]), *z = b.reg(i.src[3]);
  each(b, [=](uint32_t t) {
    const uint32_t start = (uint8_t)y[t], length = (uint8_t)z[t];
    U value = unpack<U>(x[t]);
    if (length && start < width) {
      const U mask = U((length >= width ? U(~U(0)) : U((U(1) << length) - 1)) << start);
      value = (value & ~mask) | (U(unpack<U>(field[t]) << start) & mask);
    }
    d[t] = pack<U>(value);
  });
}
template <class T>
void bfind(Block &b, const Instruction &i) {
  using U = std::make_unsigned_t<T>;
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  const bool shift_amount = i.mode;
  each(b, [=](uint32_t t) {
    const T value = unpack<T>(x[t]);
    const U bits = std::is_signed_v<T> && value < 0 ? U(~value) : U(value);
    int at = bits ? 63 - __builtin_clzll((uint64_t)bits) : -1;
    if (shift_amount && at >= 0) at = (int)(8 * sizeof(T)) - 1 - at;
    d[t] = (uint32_t)at;
  });
}
template <class U>
void brev(Block &b, const Instruction &i) {
  constexpr unsigned width = 8 * sizeof(U);
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [=](uint32_t t) {
    const U value = unpack<U>(x[t]);
    U reversed = 0;
    for (unsigned k = 0; k < width; k++)
      if (value >> k & 1) reversed |= U(1) << (width - 1 - k);
    d[t] = pack<U>(reversed);
  });
}
template <class U>
void popc(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [=](uint32_t t) { d[t] = (uint64_t)__builtin_popcountll((uint64_t)unpack<U>(x[t])); });
}
template <class U>
void clz(Block &b, const Instruction &i) {
  constexpr int width = 8 * sizeof(U);
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [=](uint32_t t) {
    const uint64_t value = unpack<U>(x[t]);
    d[t] = value ? (uint64_t)(__builtin_clzll(value) - (64 - width)) : width;
  });
}
uint32_t byte_index(PermuteMode mode, uint32_t selector, uint32_t byte) {
  const uint32_t k = selector & 3;
  switch (mode) {
    case FORWARD_4: return (k + byte) & 7;
    case BACKWARD_4: return (k - byte) & 7;
    case REPLICATE_8: return k;
    case CLAMP_LEFT: return std::max(k, byte);
    case CLAMP_RIGHT: return std::min(k, byte);
    case REPLICATE_16: return (k & 1) * 2 + (byte & 1);
    default: return (selector >> (4 * byte)) & 15;
  }
}
void prmt(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *low = b.reg(i.src[0]), *high = b.reg(i.src[1]), *selector = b.reg(i.src[2]);
  const auto mode = (PermuteMode)i.mode;
  each(b, [=](uint32_t t) {
    const uint64_t value = (uint64_t)(uint32_t)high[t] << 32 | (uint32_t)low[t];
    uint32_t result = 0;
    for (uint32_t byte = 0; byte < 4; byte++) {
      const uint32_t index = byte_index(mode, (uint32_t)selector[t], byte);
      uint32_t part = (value >> (8 * (index & 7))) & 255;
      if (index & 8) part = (part & 128) ? 255 : 0;
      result |= part << (8 * byte);
    }
    d[t] = result;
  });
}
void lop3(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  const uint32_t table = (uint32_t)i.immediate;
  each(b, [=](uint32_t t) {
    const uint32_t p = (uint32_t)x[t], q = (uint32_t)y[t], r = (uint32_t)z[t];
    uint32_t result = 0;
    for (int row = 0; row < 8; row++)
      if (table >> row & 1) result |= ((row & 4) ? p : ~p) & ((row & 2) ? q : ~q) & ((row & 1) ? r : ~r);
    d[t] = result;
  });
}

template <class Op>
Handler two_of_width(Type t) {
  return for_width(t, [](auto x) -> Handler { return map2<decltype(x), Op>; });
}
template <class Op>
Handler one_of_width(Type t) {
  return for_width(t, [](auto x) -> Handler { return map1<decltype(x), Op>; });
}

}  // namespace

Handler mov_handler() { return mov; }
Handler join_handler() { return join; }
Handler split_handler() { return split; }
Handler and_handler(Type t) { return two_of_width<And>(t); }
Handler or_handler(Type t) { return two_of_width<Or>(t); }
Handler xor_handler(Type t) { return two_of_width<Xor>(t); }
Handler not_handler(Type t) { return one_of_width<Not>(t); }
Handler cnot_handler(Type t) { return one_of_width<IsZero>(t); }
Handler shl_handler(Type t) {
  if (size_of(t) == 1) return nullptr;
  return for_width(t, [](auto x) -> Handler { return shl<decltype(x)>; });
}
Handler shr_handler(Type t) {
  return for_integer(t, [](auto x) -> Handler { return shr<decltype(x)>; });
}
Handler shf_handler() { return shf; }
Handler bfe_handler(Type t) {
  return for_wide_integer(t, [](auto x) -> Handler { return bfe<decltype(x)>; });
}
Handler bfi_handler(Type t) { return size_of(t) == 4 ? bfi<uint32_t> : size_of(t) == 8 ? bfi<uint64_t> : nullptr; }
Handler bfind_handler(Type t) {
  return for_wide_integer(t, [](auto x) -> Handler { return bfind<decltype(x)>; });
}
Handler brev_handler(Type t) { return size_of(t) == 4 ? brev<uint32_t> : size_of(t) == 8 ? brev<uint64_t> : nullptr; }
Handler popc_handler(Type t) { return size_of(t) == 4 ? popc<uint32_t> : size_of(t) == 8 ? popc<uint64_t> : nullptr; }
Handler clz_handler(Type t) { return size_of(t) == 4 ? clz<uint32_t> : size_of(t) == 8 ? clz<uint64_t> : nullptr; }
Handler prmt_handler() { return prmt; }
Handler lop3_handler() { return lop3; }

}  // namespace sim
