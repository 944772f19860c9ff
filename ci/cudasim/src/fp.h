// small float types, software conversion, round to nearest even (or by mode)
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
namespace sim {
template <class T>
inline T unpack(uint64_t v) {
  T x;
  memcpy(&x, &v, sizeof(T));
  return x;
}
template <class T>
inline uint64_t pack(T x) {
  uint64_t v = 0;
  memcpy(&v, &x, sizeof(T));
  return v;
}

inline float half_to_float(uint16_t h) {
  uint32_t s = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
  if (e == 31) return unpack<float>(s | 0x7f800000u | (m << 13));
  if (e == 0) {
    float f = (float)m * 0x1p-24f;
    return s ? -f : f;
  }
  return unpack<float>(s | ((e + 112) << 23) | (m << 13));
}
// rounding of a double to a narrow float: mant bits, exponent bias, max exponent. rm: 0 rn 1 rm(down) 2 rp(up) 3 rz
inline uint16_t narrow(double x, int mbits, int emin, int emax, int rm) {
  uint64_t u;
  memcpy(&u, &x, 8);
  int ebits_shift = mbits;
  uint16_t s = (u >> 63) ? 0x8000 : 0;
  uint16_t inf = (uint16_t)((emax - emin + 2) << ebits_shift);
  if (x != x) return 0x7fff;
  double a = std::fabs(x);
  if (std::isinf(a)) return s | inf;
  if (a == 0) return s;
  int e;
  std::frexp(a, &e);
  e -= 1;
  if (e < emin) e = emin;
  double q = std::ldexp(a, mbits - e);  // exact
  double f = std::floor(q), r = q - f;
  bool up;
  switch (rm) {
    case 1: up = s && r > 0; break;
    case 2: up = !s && r > 0; break;
    case 3: up = false; break;
    default: up = r > 0.5 || (r == 0.5 && std::fmod(f, 2.0) == 1.0);
  }
  uint32_t m = (uint32_t)f + (up ? 1 : 0);
  uint32_t enc;
  if (m < (1u << mbits)) enc = m;  // subnormal
  else enc = ((uint32_t)(e - emin + 1) << mbits) + (m - (1u << mbits));
  if (enc >= inf) {
    bool toinf = rm == 0 || (rm == 1 && s) || (rm == 2 && !s);
    enc = toinf ? inf : inf - 1;
  }
  return s | (uint16_t)enc;
}
inline uint16_t to_half(double x, int rm = 0) { return narrow(x, 10, -14, 15, rm); }
inline uint16_t to_bf16(double x, int rm = 0) { return narrow(x, 7, -126, 127, rm); }
inline float bf16_to_float(uint16_t b) { return unpack<float>((uint32_t)b << 16); }

struct h16 {
  uint16_t v;
  h16() : v(0) {}
  h16(double x) : v(to_half(x)) {}
  operator float() const { return half_to_float(v); }
};
struct b16f {
  uint16_t v;
  b16f() : v(0) {}
  b16f(double x) : v(to_bf16(x)) {}
  operator float() const { return bf16_to_float(v); }
};
template <class H>
struct x2 {
  H a, b;
};
typedef x2<h16> h16x2;
typedef x2<b16f> b16x2;
}  // namespace sim
