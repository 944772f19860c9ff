// float16 and bfloat16 in software. Values are computed in double and rounded once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace sim {

// A register is 64 bits of a thread; a narrower value sits in its low bits.
template <class T>
inline T unpack(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
inline uint64_t pack(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}

// The numbers are those of the x86 MXCSR register, so that one field of an instruction serves both.
enum Rounding { TO_NEAREST, DOWN, UP, TO_ZERO };

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) return unpack<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float value = (float)mantissa * 0x1p-24f;
    return sign ? -value : value;
  }
  return unpack<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
inline float bfloat16_to_float(uint16_t bits) { return unpack<float>((uint32_t)bits << 16); }

// Rounds x to a 16-bit format with that many mantissa bits and those exponents of normal numbers.
inline uint16_t round_to_16_bits(double x, int mantissa_bits, int min_exponent, int max_exponent, int rounding) {
  const bool negative = std::signbit(x);
  const uint16_t sign = negative ? 0x8000 : 0;
  const uint16_t infinity = (uint16_t)((max_exponent - min_exponent + 2) << mantissa_bits);
  if (std::isnan(x)) return 0x7fff;
  const double magnitude = std::fabs(x);
  if (std::isinf(magnitude)) return sign | infinity;
  if (magnitude == 0) return sign;
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = exponent - 1 < min_exponent ? min_exponent : exponent - 1;
  const double scaled = std::ldexp(magnitude, mantissa_bits - exponent);  // exact: a power of two
  const double whole = std::floor(scaled), rest = scaled - whole;
  bool away;
  switch (rounding) {
    case DOWN: away = negative && rest > 0; break;
    case UP: away = !negative && rest > 0; break;
    case TO_ZERO: away = false; break;
    default: away = rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) == 1.0);
  }
  const uint32_t mantissa = (uint32_t)whole + (away ? 1 : 0), implicit = 1u << mantissa_bits;
  uint32_t code = mantissa;  // subnormal
  if (mantissa >= implicit) code = ((uint32_t)(exponent - min_exponent + 1) << mantissa_bits) + (mantissa - implicit);
  if (code >= infinity) {
    const bool overflows = rounding == TO_NEAREST || (rounding == DOWN && negative) || (rounding == UP && !negative);
    code = overflows ? infinity : infinity - 1;
  }
  return sign | (uint16_t)code;
}
inline uint16_t to_half(double x, int rounding = TO_NEAREST) { return round_to_16_bits(x, 10, -14, 15, rounding); }
inline uint16_t to_bfloat16(double x, int rounding = TO_NEAREST) { return round_to_16_bits(x, 7, -126, 127, rounding); }

struct Half {
  uint16_t bits;
  Half() = default;
  Half(double x) : bits(to_half(x)) {}
  operator float() const { return half_to_float(bits); }
};
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  BFloat16(double x) : bits(to_bfloat16(x)) {}
  operator float() const { return bfloat16_to_float(bits); }
};

// The PTX types .f16x2, .bf16x2, .u16x2 and .f32x2: the low half of a register first.
template <class T>
struct Pair {
  T low, high;
};

}  // namespace sim
