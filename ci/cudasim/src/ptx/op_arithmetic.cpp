// Handlers of arithmetic. Integer results wrap: they are computed unsigned, since signed overflow is undefined in C++.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <cmath>
#include <type_traits>

namespace sim {
namespace {

using u128 = unsigned __int128;

template <class T>
constexpr bool is_small_float = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;
template <class T>
struct MakeUnsigned : std::make_unsigned<T> {};
template <>
struct MakeUnsigned<__int128> {
  using type = u128;
};
template <>
struct MakeUnsigned<u128> {
  using type = u128;
};
template <class T>
using Unsigned = typename MakeUnsigned<T>::type;

// In double a product of two halves is exact, and so is a sum, as far as it matters: one rounding follows.
inline double wide(Half x) { return (double)(float)x; }
inline double wide(BFloat16 x) { return (double)(float)x; }

struct Add {
  template <class T>
  static T f(T x, T y) {
    if constexpr (is_small_float<T>) return T(wide(x) + wide(y));
    else return T(x + y);
  }
};
struct Sub {
  template <class T>
  static T f(T x, T y) {
    if constexpr (is_small_float<T>) return T(wide(x) - wide(y));
    else return T(x - y);
  }
};
struct Mul {
  template <class T>
  static T f(T x, T y) {
    if constexpr (is_small_float<T>) return T(wide(x) * wide(y));
    else return T(x * y);
  }
};
struct Mad {
  template <class T>
  static T f(T x, T y, T z) {
    return T(x * y + z);
  }
};
// x + y rounded so that a second rounding to fewer bits is right: to odd where the sum is not exact.
inline double add_to_odd(double x, double y) {
  const double sum = x + y;
  if (!std::isfinite(sum)) return sum;
  const double part = sum - x, error = (x - (sum - part)) + (y - part);
  uint64_t bits = pack(sum);
  if (error == 0 || (bits & 1)) return sum;
  bits += ((error > 0) == (sum > 0)) ? 1 : -1;
  return unpack<double>(bits);
}
struct Fma {
  template <class T>
  static T f(T x, T y, T z) {
    if constexpr (is_small_float<T>) return T(add_to_odd(wide(x) * wide(y), wide(z)));
    else return std::fma(x, y, z);
  }
};
struct Div {
  template <class T>
  static T f(T x, T y) {
    return x / y;
  }
};
// Division by zero is undefined in PTX; these are the values that NVIDIA's devices give.
struct DivInteger {
  template <class T>
  static T f(T x, T y) {
    if (y == 0) return T(-1);
    if (std::is_signed_v<T> && y == T(-1)) return T(0 - (Unsigned<T>)x);
    return T(x / y);
  }
};
struct RemInteger {
  template <class T>
  static T f(T x, T y) {
    if (y == 0) return x;
    if (std::is_signed_v<T> && y == T(-1)) return 0;
    return T(x % y);
  }
};
struct Min {
  template <class T>
  static T f(T x, T y) {
    if constexpr (!std::is_integral_v<T>) {
      if (x != x) return y;
      if (y != y) return x;
      if (x == y) return std::signbit((double)x) ? x : y;  // -0 < +0
    }
    return x < y ? x : y;
  }
};
struct Max {
  template <class T>
  static T f(T x, T y) {
    if constexpr (!std::is_integral_v<T>) {
      if (x != x) return y;
      if (y != y) return x;
      if (x == y) return std::signbit((double)x) ? y : x;
    }
    return x > y ? x : y;
  }
};
template <class Op>
struct NanWins {
  template <class T>
  static T f(T x, T y) {
    if (x != x) return x;
    if (y != y) return y;
    return Op::template f<T>(x, y);
  }
};
struct Neg {
  template <class T>
  static T f(T x) {
    if constexpr (is_small_float<T>) {
      x.bits ^= 0x8000;
      return x;
    } else return T(-x);
  }
};
struct AbsInteger {
  template <class T>
  static T f(T x) {
    using U = Unsigned<T>;
    return x < 0 ? T(U(0) - U(x)) : x;
  }
};
struct Abs {
  template <class T>
  static T f(T x) {
    if constexpr (is_small_float<T>) {
      x.bits &= 0x7fff;
      return x;
    } else return std::fabs(x);
  }
};
struct Copysign {
  template <class T>
  static T f(T sign, T magnitude) {
    return std::copysign(magnitude, sign);
  }
};
struct Rcp {
  template <class T>
  static T f(T x) {
    return T(1) / x;
  }
};
struct Sqrt {
  template <class T>
  static T f(T x) {
    return std::sqrt(x);
  }
};
struct Rsqrt {
  template <class T>
  static T f(T x) {
    return T(1.0 / std::sqrt((double)x));
  }
};
struct Sin {
  template <class T>
  static T f(T x) {
    return std::sin(x);
  }
};
struct Cos {
  template <class T>
  static T f(T x) {
    return std::cos(x);
  }
};
struct Ex2 {
  template <class T>
  static T f(T x) {
    return T(std::exp2((double)x));
  }
};
struct Lg2 {
  template <class T>
  static T f(T x) {
    return T(std::log2((double)x));
  }
};
struct Tanh {
  template <class T>
  static T f(T x) {
    return T(std::tanh((double)x));
  }
};
struct Saturate {
  template <class T>
  static T f(T x) {
    if (!(x > 0)) return T(0);  // NaN too
    return x > 1 ? T(1) : x;
  }
};
// .ftz for operations that only choose and move bits: what the processor computes, it flushes itself.
template <class Op>
struct Flushed {
  template <class... Floats>
  static float f(Floats... x) {
    const uint32_t bits = (uint32_t)pack<float>(Op::template f<float>(x...));
    return unpack<float>(bits & 0x7f800000u ? bits : bits & 0x80000000u);
  }
};

template <class T, class W>
void mul_wide(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  each(b, [=](uint32_t t) { d[t] = pack<W>(W(W(unpack<T>(x[t])) * W(unpack<T>(y[t])))); });
}
template <class T, class W>
void mad_wide(Block &b, const Instruction &i) {
  using U = Unsigned<W>;
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  each(b, [=](uint32_t t) {
    const W product = W(unpack<T>(x[t])) * W(unpack<T>(y[t]));
    d[t] = pack<U>(U(U(product) + unpack<U>(z[t])));
  });
}
template <class T, class W>
T high_half(T x, T y) {
  return T((W(x) * W(y)) >> (8 * sizeof(T)));
}
template <class T, class W>
void mul_hi(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  each(b, [=](uint32_t t) { d[t] = pack<T>(high_half<T, W>(unpack<T>(x[t]), unpack<T>(y[t]))); });
}
template <class T, class W>
void mad_hi(Block &b, const Instruction &i) {
  using U = Unsigned<T>;
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  each(b,
       [=](uint32_t t) { d[t] = pack<U>(U(U(high_half<T, W>(unpack<T>(x[t]), unpack<T>(y[t]))) + unpack<U>(z[t]))); });
}
// Calls f with a value of an integer type and one of the type twice as wide.
template <class F>
Handler for_widening(Type t, F f) {
  switch (t) {
    case U16: return f(uint16_t(), uint32_t());
    case S16: return f(int16_t(), int32_t());
    case U32: return f(uint32_t(), uint64_t());
    case S32: return f(int32_t(), int64_t());
    case U64: return f(uint64_t(), u128());
    case S64: return f(int64_t(), (__int128)0);
    default: return nullptr;
  }
}

template <class T>
void mul24(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg_or_null(i.src[2]);
  const int shift = i.mode ? 16 : 0;
  each(b, [=](uint32_t t) {
    const int64_t p = (T)((uint32_t)x[t] << 8) >> 8, q = (T)((uint32_t)y[t] << 8) >> 8;
    d[t] = (uint32_t)((uint32_t)((uint64_t)(p * q) >> shift) + (z ? (uint32_t)z[t] : 0));
  });
}
template <class T>
void add_carry(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]), *carry = b.reg(i.carry);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  const uint8_t mode = i.mode;
  each(b, [=](uint32_t t) {
    const u128 p = unpack<T>(x[t]), q = unpack<T>(y[t]), in = (mode & USE_CARRY) ? carry[t] : 0;
    const u128 sum = (mode & SUBTRACT) ? p - q - in : p + q + in;
    if (mode & SET_CARRY) carry[t] = (uint64_t)(sum >> (8 * sizeof(T))) & 1;
    d[t] = pack<T>(T(sum));
  });
}
template <class T, class W>
void mad_carry(Block &b, const Instruction &i) {
  using U = Unsigned<T>;
  uint64_t *d = b.reg(i.dst[0]), *carry = b.reg(i.carry);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  const uint8_t mode = i.mode, high = i.mode2;
  each(b, [=](uint32_t t) {
    const W product = W(unpack<T>(x[t])) * W(unpack<T>(y[t]));
    const U part = high ? U(product >> (8 * sizeof(T))) : U(product);
    const u128 sum = (u128)part + unpack<U>(z[t]) + ((mode & USE_CARRY) ? carry[t] : 0);
    if (mode & SET_CARRY) carry[t] = (uint64_t)(sum >> (8 * sizeof(T))) & 1;
    d[t] = pack<U>(U(sum));
  });
}
template <class T>
void sad(Block &b, const Instruction &i) {
  using U = Unsigned<T>;
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  each(b, [=](uint32_t t) {
    const T p = unpack<T>(x[t]), q = unpack<T>(y[t]);
    d[t] = pack<U>(U((p < q ? U(q) - U(p) : U(p) - U(q)) + unpack<U>(z[t])));
  });
}
void dp4a(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *z = b.reg(i.src[2]);
  const bool first_signed = i.mode & 1, second_signed = i.mode & 2;
  each(b, [=](uint32_t t) {
    uint32_t sum = (uint32_t)z[t];
    for (int byte = 0; byte < 4; byte++) {
      const uint8_t p = x[t] >> (8 * byte), q = y[t] >> (8 * byte);
      sum += (uint32_t)((first_signed ? (int8_t)p : (int)p) * (second_signed ? (int8_t)q : (int)q));
    }
    d[t] = sum;
  });
}

template <class Op>
Handler one_float(Type t) {
  if (t == F16X2) return map1<Pair<Half>, OnPair<Half, Op>>;
  if (t == BF16X2) return map1<Pair<BFloat16>, OnPair<BFloat16, Op>>;
  return for_float(t, [](auto x) -> Handler { return map1<decltype(x), Op>; });
}
template <class Op>
Handler two_floats(Type t) {
  if (t == F16X2) return map2<Pair<Half>, OnPair<Half, Op>>;
  if (t == BF16X2) return map2<Pair<BFloat16>, OnPair<BFloat16, Op>>;
  if (t == F32X2) return map2<Pair<float>, OnPair<float, Op>>;
  return for_float(t, [](auto x) -> Handler { return map2<decltype(x), Op>; });
}
template <class Op>
Handler float_or_double(Type t) {
  return t == F32 ? map1<float, Op> : t == F64 ? map1<double, Op> : nullptr;
}
template <class Op>
Handler two_unsigned(Type t) {
  if (t == U16X2 || t == S16X2) return map2<Pair<uint16_t>, OnPair<uint16_t, Op>>;
  return for_width(t, [](auto x) -> Handler { return map2<decltype(x), Op>; });
}
template <class Op>
Handler two_integers(Type t) {
  if (t == U16X2) return map2<Pair<uint16_t>, OnPair<uint16_t, Op>>;
  if (t == S16X2) return map2<Pair<int16_t>, OnPair<int16_t, Op>>;
  return for_integer(t, [](auto x) -> Handler { return map2<decltype(x), Op>; });
}
template <class Op>
Handler choose(Type t, bool flush) {
  return flush && t == F32 ? map2<float, Flushed<Op>> : two_floats<Op>(t);
}
bool is_signed_type(Type t) { return t == S16 || t == S32 || t == S64; }
bool has_sign(Type t) { return is_signed_type(t) || t == U16 || t == U32 || t == U64; }

}  // namespace

Handler add_handler(Type t) { return is_float(t) ? two_floats<Add>(t) : two_unsigned<Add>(t); }
Handler sub_handler(Type t) { return is_float(t) ? two_floats<Sub>(t) : two_unsigned<Sub>(t); }
Handler mul_handler(Type t) {
  if (is_float(t)) return two_floats<Mul>(t);
  // In 32 bits: the product of two uint16_t would be computed as int and could overflow.
  return size_of(t) == 2 ? map2<uint32_t, Mul> : two_unsigned<Mul>(t);
}
Handler mul_wide_handler(Type t) {
  return for_widening(t, [](auto x, auto w) -> Handler {
    if constexpr (sizeof x == 8) return nullptr;  // there is no 128-bit register
    else return mul_wide<decltype(x), decltype(w)>;
  });
}
Handler mul_hi_handler(Type t) {
  return for_widening(t, [](auto x, auto w) -> Handler { return mul_hi<decltype(x), decltype(w)>; });
}
Handler mad_handler(Type t) {
  switch (size_of(t)) {
    case 2:
    case 4: return map3<uint32_t, Mad>;
    case 8: return map3<uint64_t, Mad>;
    default: return nullptr;
  }
}
Handler mad_wide_handler(Type t) {
  return for_widening(t, [](auto x, auto w) -> Handler {
    if constexpr (sizeof x == 8) return nullptr;  // there is no 128-bit register
    else return mad_wide<decltype(x), decltype(w)>;
  });
}
Handler mad_hi_handler(Type t) {
  return for_widening(t, [](auto x, auto w) -> Handler { return mad_hi<decltype(x), decltype(w)>; });
}
Handler fma_handler(Type t) {
  if (t == F16X2) return map3<Pair<Half>, OnPair<Half, Fma>>;
  if (t == BF16X2) return map3<Pair<BFloat16>, OnPair<BFloat16, Fma>>;
  if (t == F32X2) return map3<Pair<float>, OnPair<float, Fma>>;
  return for_float(t, [](auto x) -> Handler { return map3<decltype(x), Fma>; });
}
Handler mul24_handler(bool is_signed) { return is_signed ? mul24<int32_t> : mul24<uint32_t>; }
Handler div_handler(Type t) {
  if (t == F32) return map2<float, Div>;
  if (t == F64) return map2<double, Div>;
  if (!has_sign(t)) return nullptr;
  return for_integer(t, [](auto x) -> Handler { return map2<decltype(x), DivInteger>; });
}
Handler rem_handler(Type t) {
  if (!has_sign(t)) return nullptr;
  return for_integer(t, [](auto x) -> Handler { return map2<decltype(x), RemInteger>; });
}
Handler min_handler(Type t, bool nan_wins, bool flush) {
  if (!is_float(t)) return two_integers<Min>(t);
  return nan_wins ? choose<NanWins<Min>>(t, flush) : choose<Min>(t, flush);
}
Handler max_handler(Type t, bool nan_wins, bool flush) {
  if (!is_float(t)) return two_integers<Max>(t);
  return nan_wins ? choose<NanWins<Max>>(t, flush) : choose<Max>(t, flush);
}
Handler abs_handler(Type t, bool flush) {
  if (is_float(t)) return flush && t == F32 ? map1<float, Flushed<Abs>> : one_float<Abs>(t);
  if (!is_signed_type(t)) return nullptr;
  return for_integer(t, [](auto x) -> Handler { return map1<decltype(x), AbsInteger>; });
}
Handler neg_handler(Type t, bool flush) {
  if (is_float(t)) return flush && t == F32 ? map1<float, Flushed<Neg>> : one_float<Neg>(t);
  return for_width(t, [](auto x) -> Handler { return map1<decltype(x), Neg>; });
}
Handler copysign_handler(Type t) {
  return t == F32 ? map2<float, Copysign> : t == F64 ? map2<double, Copysign> : nullptr;
}
Handler rcp_handler(Type t) { return float_or_double<Rcp>(t); }
Handler sqrt_handler(Type t) { return float_or_double<Sqrt>(t); }
Handler rsqrt_handler(Type t) { return float_or_double<Rsqrt>(t); }
Handler sin_handler(Type t) { return t == F32 ? map1<float, Sin> : nullptr; }
Handler cos_handler(Type t) { return t == F32 ? map1<float, Cos> : nullptr; }
Handler ex2_handler(Type t) { return one_float<Ex2>(t); }
Handler lg2_handler(Type t) { return one_float<Lg2>(t); }
Handler tanh_handler(Type t) { return one_float<Tanh>(t); }
Handler saturate_handler(Type t) {
  return for_float(t, [](auto x) -> Handler { return map1<decltype(x), Saturate>; });
}
Handler add_carry_handler(Type t) {
  return size_of(t) == 4 ? add_carry<uint32_t> : size_of(t) == 8 ? add_carry<uint64_t> : nullptr;
}
Handler mad_carry_handler(Type t) {
  switch (t) {
    case B32: return mad_carry<uint32_t, uint64_t>;
    case B64: return mad_carry<uint64_t, u128>;
    case U16:
    case S16: return nullptr;
    default: return for_widening(t, [](auto x, auto w) -> Handler { return mad_carry<decltype(x), decltype(w)>; });
  }
}
Handler sad_handler(Type t) {
  return for_wide_integer(t, [](auto x) -> Handler { return sad<decltype(x)>; });
}
Handler dp4a_handler() { return dp4a; }

}  // namespace sim
