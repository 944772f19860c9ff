// Handlers of cvt. Every float is converted by way of double, which holds all of them exactly.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <cmath>
#include <limits>
#include <type_traits>

namespace sim {
namespace {

using i128 = __int128;
using u128 = unsigned __int128;

inline double to_whole(double x, uint8_t mode) {
  switch (mode) {
    case TO_NEAREST_INTEGER: return std::nearbyint(x);
    case TOWARDS_ZERO: return std::trunc(x);
    case TO_FLOOR: return std::floor(x);
    case TO_CEILING: return std::ceil(x);
    default: return x;
  }
}
template <class T>
inline T clamp_to_unit(T x) {
  return !(x > 0) ? T(0) : x > 1 ? T(1) : x;  // NaN becomes 0
}
// An integer as a double that is odd where it is not exact, so that a second rounding to fewer bits is right.
inline double to_odd_double(i128 x) {
  constexpr i128 exact = i128(1) << 52;
  if (x > -exact && x < exact) return (double)(int64_t)x;
  const bool negative = x < 0;
  const u128 magnitude = negative ? -(u128)x : (u128)x;
  int shift = 0;
  while (magnitude >> (shift + 52)) shift++;
  u128 top = magnitude >> shift;
  if (magnitude & (((u128)1 << shift) - 1)) top |= 1;
  const double value = std::ldexp((double)(uint64_t)top, shift);
  return negative ? -value : value;
}

// A register wider than an integer result holds it extended by its sign.
template <class D>
inline uint64_t extend(D value) {
  return std::is_signed_v<D> ? (uint64_t)(int64_t)value : (uint64_t)value;
}

template <class D>
struct To {  // integers
  static uint64_t from_float(double x, const Instruction &i) {
    using Limits = std::numeric_limits<D>;
    if (std::isnan(x)) {  // what the hardware gives: 0, but the top bit for double to 32 or 64 bits
      if (i.type2 != F64 || sizeof(D) < 4) return 0;
      return pack<D>(std::is_signed_v<D> ? Limits::min() : D(D(1) << (8 * sizeof(D) - 1)));
    }
    x = to_whole(x, i.mode ? i.mode : (uint8_t)TOWARDS_ZERO);
    const double end = std::ldexp(1.0, Limits::digits);
    return extend(x < (double)Limits::min() ? Limits::min() : x >= end ? Limits::max() : (D)x);
  }
  template <class S>
  static uint64_t from_integer(S x, const Instruction &i) {
    if (!i.saturate) return extend((D)x);
    constexpr i128 low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return extend((D)((i128)x < low ? low : (i128)x > high ? high : (i128)x));
  }
};
template <>
struct To<float> {
  static uint64_t from_float(double x, const Instruction &i) {
    const float value = (float)to_whole(x, i.mode);
    return pack<float>(i.saturate ? clamp_to_unit(value) : value);
  }
  template <class S>
  static uint64_t from_integer(S x, const Instruction &) {
    return pack<float>((float)x);
  }
};
template <>
struct To<double> {
  static uint64_t from_float(double x, const Instruction &i) {
    const double value = to_whole(x, i.mode);
    return pack<double>(i.saturate ? clamp_to_unit(value) : value);
  }
  template <class S>
  static uint64_t from_integer(S x, const Instruction &) {
    return pack<double>((double)x);
  }
};
template <>
struct To<Half> {
  static uint64_t from_float(double x, const Instruction &i) {
    const double value = to_whole(x, i.mode);
    return to_half(i.saturate ? clamp_to_unit(value) : value, i.rounding & 3);
  }
  template <class S>
  static uint64_t from_integer(S x, const Instruction &i) {
    return to_half(to_odd_double((i128)x), i.rounding & 3);
  }
};
template <>
struct To<BFloat16> {
  static uint64_t from_float(double x, const Instruction &i) {
    return to_bfloat16(to_whole(x, i.mode), i.rounding & 3);
  }
  template <class S>
  static uint64_t from_integer(S x, const Instruction &i) {
    return to_bfloat16(to_odd_double((i128)x), i.rounding & 3);
  }
};

template <class D, class S>
void cvt(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  each(b, [&](uint32_t t) {
    if constexpr (std::is_integral_v<S>) d[t] = To<D>::template from_integer<S>(unpack<S>(x[t]), i);
    else d[t] = To<D>::from_float((double)unpack<S>(x[t]), i);
  });
}
template <class F>
Handler for_any(Type t, F f) {
  if (is_float(t)) return for_float(t, f);
  if (t == S8) return f(int8_t());
  if (t == U8 || t == B8) return f(uint8_t());
  return for_integer(t, f);
}
template <uint16_t (*round_to)(double, int)>
void cvt_pair(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *high = b.reg(i.src[0]), *low = b.reg(i.src[1]);
  const int rounding = i.rounding & 3;
  each(b, [=](uint32_t t) {
    const uint32_t top = round_to(unpack<float>(high[t]), rounding);
    d[t] = top << 16 | round_to(unpack<float>(low[t]), rounding);
  });
}

}  // namespace

Handler cvt_handler(Type to, Type from) {
  return for_any(to, [from](auto d) -> Handler {
    return for_any(from, [](auto s) -> Handler { return cvt<decltype(d), decltype(s)>; });
  });
}
Handler cvt_pair_handler(Type to) {
  return to == F16X2 ? cvt_pair<to_half> : to == BF16X2 ? cvt_pair<to_bfloat16> : nullptr;
}

}  // namespace sim
