// PTX parser and block-wide interpreter.
#include "ptx.h"
#include "fp.h"
#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>
#include <xmmintrin.h>

namespace sim {

typedef unsigned __int128 u128;
uint64_t total_ins = 0;

struct Fault : std::runtime_error {
  int code;
  Fault(int c, const std::string &m) : std::runtime_error(m), code(c) {}
};

int ty_size(Ty t) {
  switch (t) {
    case B8:
    case U8:
    case S8:
    case PRED: return 1;
    case B16:
    case U16:
    case S16:
    case F16:
    case BF16: return 2;
    case B32:
    case U32:
    case S32:
    case F32:
    case F16X2:
    case BF16X2:
    case U16X2:
    case S16X2: return 4;
    case B64:
    case U64:
    case S64:
    case F64:
    case F32X2: return 8;
    case B128: return 16;
    default: return 0;
  }
}

struct Ctx {
  uint64_t *R = nullptr;
  uint32_t N = 0, n = 0;
  bool dense = true;
  uint32_t na = 0;
  const uint16_t *act = nullptr;
  uint8_t *shared = nullptr;
  uint64_t shared_size = 0;
  uint8_t *local = nullptr;
  uint64_t local_size = 0;  // per thread
  const uint8_t *params = nullptr;
  uint64_t param_size = 0;
  uint64_t lo = 1, span = 0;  // last range seen by the checker
  uint64_t *r(int s) const { return R + (size_t)s * N; }
  uint32_t grid[3], block[3], cta[3];
  uint32_t dyn = 0;
  std::vector<uint32_t> livemask;  // one word per warp
  const Kernel *k = nullptr;

  [[noreturn]] void bad(uint64_t a, unsigned sz, const Ins &i, uint32_t t, bool store) {
    char b[600];
    snprintf(b, sizeof b, "kernel %s: invalid %s of %u bytes at 0x%llx by thread %u of block (%u,%u,%u): %s",
             k->name.c_str(), store ? "write" : "read", sz, (unsigned long long)a, t, cta[0], cta[1], cta[2],
             i.text.c_str());
    throw Fault(700, b);
  }
  bool slow(uint64_t a, unsigned sz) {
    auto in = [&](uint64_t l, uint64_t s) {
      if (a >= l && a + sz <= l + s) {
        lo = l;
        span = s;
        return true;
      }
      return false;
    };
    if (in((uint64_t)shared, shared_size)) return true;
    if (local && in((uint64_t)local, local_size * N)) return true;
    if (in((uint64_t)params, param_size)) return true;
    uint64_t l, h;
    if (mem_lookup(a, l, h) && in(l, h - l)) return true;
    return false;
  }
  inline uint8_t *at(uint64_t a, unsigned sz, const Ins &i, uint32_t t, bool store = false) {
    if (__builtin_expect(!(a - lo < span && a - lo + sz <= span), 0))
      if (!slow(a, sz)) bad(a, sz, i, t, store);
    if (__builtin_expect(a & (sz - 1), 0)) {
      char b[300];
      snprintf(b, sizeof b, "kernel %s: misaligned address 0x%llx: %s", k->name.c_str(), (unsigned long long)a,
               i.text.c_str());
      throw Fault(716, b);
    }
    return (uint8_t *)a;
  }
  inline uint64_t base(Space s, uint32_t t) const {
    return s == SHARED ? (uint64_t)shared : s == LOCAL ? (uint64_t)local + (uint64_t)t * local_size : 0;
  }
};

#define EACH(body)                             \
  do {                                         \
    if (c.dense) {                             \
      const uint32_t n_ = c.n;                 \
      for (uint32_t t = 0; t < n_; ++t) {      \
        body;                                  \
      }                                        \
    } else {                                   \
      for (uint32_t k_ = 0; k_ < c.na; ++k_) { \
        uint32_t t = c.act[k_];                \
        body;                                  \
      }                                        \
    }                                          \
  } while (0)

// ---------------------------------------------------------------- functors
template <class T>
struct is_half {
  static const bool v = false;
};
template <>
struct is_half<h16> {
  static const bool v = true;
};
template <>
struct is_half<b16f> {
  static const bool v = true;
};
template <class T, class F>
static inline T fl2(T a, T b, F f) {
  return T(f((double)(float)a, (double)(float)b));
}

struct OAdd {
  template <class T>
  static T f(T a, T b) {
    return T(a + b);
  }
};
struct OSub {
  template <class T>
  static T f(T a, T b) {
    return T(a - b);
  }
};
struct OMul {
  template <class T>
  static T f(T a, T b) {
    return T(a * b);
  }
};
template <>
inline h16 OMul::f(h16 a, h16 b) {
  return h16((double)(float)a * (float)b);
}
template <>
inline h16 OAdd::f(h16 a, h16 b) {
  return h16((double)(float)a + (float)b);
}
template <>
inline h16 OSub::f(h16 a, h16 b) {
  return h16((double)(float)a - (float)b);
}
template <>
inline b16f OMul::f(b16f a, b16f b) {
  return b16f((double)(float)a * (float)b);
}
template <>
inline b16f OAdd::f(b16f a, b16f b) {
  return b16f((double)(float)a + (float)b);
}
template <>
inline b16f OSub::f(b16f a, b16f b) {
  return b16f((double)(float)a - (float)b);
}
struct ODivF {
  template <class T>
  static T f(T a, T b) {
    return a / b;
  }
};
struct ODivU {
  template <class T>
  static T f(T a, T b) {
    return b ? T(a / b) : T(~T(0));
  }
};
struct ODivS {
  template <class T>
  static T f(T a, T b) {
    if (!b) return T(-1);
    if (b == T(-1)) return T(0 - (typename std::make_unsigned<T>::type)a);
    return T(a / b);
  }
};
struct ORemU {
  template <class T>
  static T f(T a, T b) {
    return b ? T(a % b) : a;
  }
};
struct ORemS {
  template <class T>
  static T f(T a, T b) {
    if (!b) return a;
    if (b == T(-1)) return 0;
    return T(a % b);
  }
};
struct OMinI {
  template <class T>
  static T f(T a, T b) {
    return a < b ? a : b;
  }
};
struct OMaxI {
  template <class T>
  static T f(T a, T b) {
    return a > b ? a : b;
  }
};
struct OMinF {
  template <class T>
  static T f(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    if ((float)a == 0 && (float)b == 0) return std::signbit((double)a) ? a : b;
    return a < b ? a : b;
  }
};
struct OMaxF {
  template <class T>
  static T f(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    if ((float)a == 0 && (float)b == 0) return std::signbit((double)a) ? b : a;
    return a > b ? a : b;
  }
};
struct OMinN {
  template <class T>
  static T f(T a, T b) {
    if (a != a) return a;
    if (b != b) return b;
    return OMinF::f(a, b);
  }
};
struct OMaxN {
  template <class T>
  static T f(T a, T b) {
    if (a != a) return a;
    if (b != b) return b;
    return OMaxF::f(a, b);
  }
};
template <>
inline double OMinF::f(double a, double b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <>
inline double OMaxF::f(double a, double b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
struct OAnd {
  template <class T>
  static T f(T a, T b) {
    return a & b;
  }
};
struct OOr {
  template <class T>
  static T f(T a, T b) {
    return a | b;
  }
};
struct OXor {
  template <class T>
  static T f(T a, T b) {
    return a ^ b;
  }
};
struct ONot {
  template <class T>
  static T f(T a) {
    return T(~a);
  }
};
struct OCNot {
  template <class T>
  static T f(T a) {
    return a == 0;
  }
};
struct ONeg {
  template <class T>
  static T f(T a) {
    return T(-a);
  }
};
template <>
inline h16 ONeg::f(h16 a) {
  a.v ^= 0x8000;
  return a;
}
template <>
inline b16f ONeg::f(b16f a) {
  a.v ^= 0x8000;
  return a;
}
struct OAbsI {
  template <class T>
  static T f(T a) {
    typedef typename std::make_unsigned<T>::type U;
    return a < 0 ? T(U(0) - U(a)) : a;
  }
};
struct OAbsF {
  template <class T>
  static T f(T a) {
    return std::fabs(a);
  }
};
template <>
inline h16 OAbsF::f(h16 a) {
  a.v &= 0x7fff;
  return a;
}
template <>
inline b16f OAbsF::f(b16f a) {
  a.v &= 0x7fff;
  return a;
}
struct ORcp {
  template <class T>
  static T f(T a) {
    return T(1) / a;
  }
};
struct OSqrt {
  template <class T>
  static T f(T a) {
    return std::sqrt(a);
  }
};
struct ORsqrt {
  template <class T>
  static T f(T a) {
    return T(1.0 / std::sqrt((double)a));
  }
};
struct OSin {
  template <class T>
  static T f(T a) {
    return std::sin(a);
  }
};
struct OCos {
  template <class T>
  static T f(T a) {
    return std::cos(a);
  }
};
struct OEx2 {
  template <class T>
  static T f(T a) {
    return T(std::exp2((double)(float)a));
  }
};
struct OLg2 {
  template <class T>
  static T f(T a) {
    return T(std::log2((double)a));
  }
};
struct OTanh {
  template <class T>
  static T f(T a) {
    return T(std::tanh((double)(float)a));
  }
};
struct OCopysign {
  template <class T>
  static T f(T a, T b) {
    return std::copysign(b, a);
  }
};
struct OFma {
  template <class T>
  static T f(T a, T b, T c) {
    return T(a * b + c);
  }
};
template <>
inline float OFma::f(float a, float b, float c) {
  return std::fma(a, b, c);
}
template <>
inline double OFma::f(double a, double b, double c) {
  return std::fma(a, b, c);
}
template <>
inline h16 OFma::f(h16 a, h16 b, h16 c) {
  return h16((double)(float)a * (float)b + (double)(float)c);
}
template <>
inline b16f OFma::f(b16f a, b16f b, b16f c) {
  return b16f(std::fma((double)(float)a, (double)(float)b, (double)(float)c));
}
struct OMad {
  template <class T>
  static T f(T a, T b, T c) {
    return T(a * b + c);
  }
};

template <class T, class O>
static void fun1(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(D[t] = pack<T>(O::template f<T>(unpack<T>(A[t]))));
}
template <class T, class O>
static void fun2(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(D[t] = pack<T>(O::template f<T>(unpack<T>(A[t]), unpack<T>(B[t]))));
}
template <class T, class O>
static void fun3(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(D[t] = pack<T>(O::template f<T>(unpack<T>(A[t]), unpack<T>(B[t]), unpack<T>(C[t]))));
}
template <class H, class O>
static void fun1x2(Ctx &c, const Ins &i) {
  typedef x2<H> X;
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(X a = unpack<X>(A[t]); X r; r.a = O::template f<H>(a.a); r.b = O::template f<H>(a.b); D[t] = pack<X>(r));
}
template <class H, class O>
static void fun2x2(Ctx &c, const Ins &i) {
  typedef x2<H> X;
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(X a = unpack<X>(A[t]); X b = unpack<X>(B[t]); X r; r.a = O::template f<H>(a.a, b.a);
       r.b = O::template f<H>(a.b, b.b); D[t] = pack<X>(r));
}
template <class H, class O>
static void fun3x2(Ctx &c, const Ins &i) {
  typedef x2<H> X;
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(X a = unpack<X>(A[t]); X b = unpack<X>(B[t]); X e = unpack<X>(C[t]); X r; r.a = O::template f<H>(a.a, b.a, e.a);
       r.b = O::template f<H>(a.b, b.b, e.b); D[t] = pack<X>(r));
}

// integer families by signedness
template <class O>
static Fn sel_int(Ty t) {
  switch (t) {
    case U16:
    case B16: return fun2<uint16_t, O>;
    case S16: return fun2<int16_t, O>;
    case U32:
    case B32: return fun2<uint32_t, O>;
    case S32: return fun2<int32_t, O>;
    case U64:
    case B64: return fun2<uint64_t, O>;
    case S64: return fun2<int64_t, O>;
    case U16X2: return fun2x2<uint16_t, O>;
    case S16X2: return fun2x2<int16_t, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_uns(Ty t) {
  if (t == U16X2 || t == S16X2) return fun2x2<uint16_t, O>;
  switch (ty_size(t)) {
    case 2: return fun2<uint16_t, O>;
    case 4: return fun2<uint32_t, O>;
    case 8: return fun2<uint64_t, O>;
    case 1: return fun2<uint8_t, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_uns1(Ty t) {
  switch (ty_size(t)) {
    case 2: return fun1<uint16_t, O>;
    case 4: return fun1<uint32_t, O>;
    case 8: return fun1<uint64_t, O>;
    case 1: return fun1<uint8_t, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_fl2(Ty t) {
  switch (t) {
    case F32: return fun2<float, O>;
    case F64: return fun2<double, O>;
    case F16: return fun2<h16, O>;
    case BF16: return fun2<b16f, O>;
    case F16X2: return fun2x2<h16, O>;
    case BF16X2: return fun2x2<b16f, O>;
    case F32X2: return fun2x2<float, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_fl3(Ty t) {
  switch (t) {
    case F32: return fun3<float, O>;
    case F64: return fun3<double, O>;
    case F16: return fun3<h16, O>;
    case BF16: return fun3<b16f, O>;
    case F16X2: return fun3x2<h16, O>;
    case BF16X2: return fun3x2<b16f, O>;
    case F32X2: return fun3x2<float, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_fl1(Ty t) {
  switch (t) {
    case F32: return fun1<float, O>;
    case F64: return fun1<double, O>;
    case F16: return fun1<h16, O>;
    case BF16: return fun1<b16f, O>;
    case F16X2: return fun1x2<h16, O>;
    case BF16X2: return fun1x2<b16f, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_fd1(Ty t) {
  switch (t) {
    case F32: return fun1<float, O>;
    case F64: return fun1<double, O>;
    default: return nullptr;
  }
}
template <class O>
static Fn sel_fd2(Ty t) {
  switch (t) {
    case F32: return fun2<float, O>;
    case F64: return fun2<double, O>;
    default: return nullptr;
  }
}

static void f_mov(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(D[t] = A[t]);
}
static void f_pack(Ctx &c, const Ins &i) {  // D = {s0, s1, ..}
  uint64_t *D = c.r(i.d[0]);
  int w = i.sz * 8;
  uint64_t m = w == 64 ? ~0ull : (1ull << w) - 1;
  EACH(uint64_t v = 0; for (int j = 0; j < i.vec; j++) v |= (c.r(i.s[j])[t] & m) << (j * w); D[t] = v);
}
static void f_unpack(Ctx &c, const Ins &i) {
  const uint64_t *A = c.r(i.s[0]);
  int w = i.sz * 8;
  uint64_t m = w == 64 ? ~0ull : (1ull << w) - 1;
  EACH(uint64_t v = A[t]; for (int j = 0; j < i.vec; j++) if (i.d[j] >= 0) c.r(i.d[j])[t] = (v >> (j * w)) & m);
}
// multiply: wide / hi
template <class T, class W>
static void f_mulwide(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(D[t] = pack<W>(W(W(unpack<T>(A[t])) * W(unpack<T>(B[t])))));
}
template <class T, class W>
static void f_madwide(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(D[t] = pack<W>(W((uint64_t)(W(unpack<T>(A[t])) * W(unpack<T>(B[t]))) + (uint64_t)unpack<W>(C[t]))));
}
template <class T, class W>
static void f_mulhi(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(D[t] = pack<T>(T((W(unpack<T>(A[t])) * W(unpack<T>(B[t]))) >> (8 * sizeof(T)))));
}
template <class T, class W>
static void f_madhi(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(D[t] = pack<T>(T(T((W(unpack<T>(A[t])) * W(unpack<T>(B[t]))) >> (8 * sizeof(T))) + unpack<T>(C[t]))));
}
template <class T>
static void f_mul24(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  const uint64_t *C = i.s[2] >= 0 ? c.r(i.s[2]) : nullptr;
  EACH(int64_t a = (T)((uint32_t)A[t] << 8) >> 8; int64_t b = (T)((uint32_t)B[t] << 8) >> 8;
       uint64_t p = (uint64_t)(a * b); uint32_t r = i.mode ? (uint32_t)(p >> 16) : (uint32_t)p;
       D[t] = (uint32_t)(r + (C ? (uint32_t)C[t] : 0)));
}
// carry chains: slot s[7] holds the flag
template <class T>
static void f_addc(Ctx &c, const Ins &i) {  // mode bit0 use carry, bit1 set carry, bit2 subtract
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  uint64_t *F = c.r(i.s[7]);
  EACH(u128 a = unpack<T>(A[t]); u128 b = unpack<T>(B[t]); u128 ci = (i.mode & 1) ? F[t] : 0;
       u128 r = (i.mode & 4) ? a - b - ci : a + b + ci; if (i.mode & 2) F[t] = (uint64_t)(r >> (8 * sizeof(T))) & 1;
       D[t] = pack<T>(T(r)));
}
template <class T, class W>
static void f_madc(Ctx &c, const Ins &i) {  // mode2: 1 hi
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  uint64_t *F = c.r(i.s[7]);
  EACH(W p = W(unpack<T>(A[t])) * W(unpack<T>(B[t]));
       u128 a = (typename std::make_unsigned<T>::type)(i.mode2 ? T(p >> (8 * sizeof(T))) : T(p));
       u128 r = a + (u128)(typename std::make_unsigned<T>::type)unpack<T>(C[t]) + ((i.mode & 1) ? F[t] : 0);
       if (i.mode & 2) F[t] = (uint64_t)(r >> (8 * sizeof(T))) & 1; D[t] = pack<T>(T(r)));
}
template <class T>
static void f_shl(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(uint32_t b = (uint32_t)B[t]; D[t] = b >= 8 * sizeof(T) ? 0 : pack<T>(T(unpack<T>(A[t]) << b)));
}
template <class T>
static void f_shr(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(uint32_t b = (uint32_t)B[t]; T a = unpack<T>(A[t]);
       D[t] = pack<T>(b >= 8 * sizeof(T) ? (a < 0 ? T(-1) : T(0)) : T(a >> b)));
}
static void f_shf(Ctx &c, const Ins &i) {  // mode bit0 right, bit1 wrap
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(uint32_t n = (uint32_t)C[t]; n = (i.mode & 2) ? n & 31 : (n > 32 ? 32 : n);
       uint64_t v = (uint64_t)(uint32_t)B[t] << 32 | (uint32_t)A[t];
       D[t] = (i.mode & 1) ? (uint32_t)(v >> n) : (uint32_t)((v << n) >> 32));
}
template <class T>
static void f_bfe(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  const int W = 8 * sizeof(T);
  typedef typename std::make_unsigned<T>::type U;
  EACH(uint32_t pos = (uint8_t)B[t]; uint32_t len = (uint8_t)C[t]; U a = unpack<U>(A[t]); U r = 0; if (len) {
    U v = pos >= (uint32_t)W ? U(0) : U(a >> pos);
    bool sg = T(-1) < T(0);
    uint32_t sb = std::min<uint32_t>(pos + len - 1, W - 1);
    bool s = sg && ((a >> sb) & 1);
    r = len >= (uint32_t)W ? v : U(v & ((U(1) << len) - 1));
    uint32_t keep = std::min<uint32_t>(len, pos < (uint32_t)W ? W - pos : 0);
    if (s && keep < (uint32_t)W) r |= U(~U(0)) << keep;
  } D[t] = pack<U>(r));
}
template <class U>
static void f_bfi(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]), *E = c.r(i.s[3]);
  const uint32_t W = 8 * sizeof(U);
  EACH(uint32_t pos = (uint8_t)C[t]; uint32_t len = (uint8_t)E[t]; U b = unpack<U>(B[t]); U r = b; if (len && pos < W) {
    U m = len >= W ? U(~U(0)) : U((U(1) << len) - 1);
    m = U(m << pos);
    r = (b & ~m) | (U(unpack<U>(A[t]) << pos) & m);
  } D[t] = pack<U>(r));
}
template <class T>
static void f_bfind(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  typedef typename std::make_unsigned<T>::type U;
  EACH(T a = unpack<T>(A[t]); U u = a < 0 ? U(~a) : U(a); int b = u ? 63 - __builtin_clzll((uint64_t)u) : -1;
       if (i.mode && b >= 0) b = (int)(8 * sizeof(T)) - 1 - b; D[t] = (uint32_t)b);
}
template <class U>
static void f_brev(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(U a = unpack<U>(A[t]); U r = 0;
       for (unsigned b = 0; b < 8 * sizeof(U); b++) if (a >> b & 1) r |= U(1) << (8 * sizeof(U) - 1 - b);
       D[t] = pack<U>(r));
}
template <class U>
static void f_popc(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(D[t] = (uint64_t)__builtin_popcountll((uint64_t)unpack<U>(A[t])));
}
template <class U>
static void f_clz(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(uint64_t a = unpack<U>(A[t]);
       D[t] = a ? (uint64_t)(__builtin_clzll(a) - (64 - 8 * (int)sizeof(U))) : 8 * sizeof(U));
}
static void f_prmt(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(uint64_t v = (uint64_t)(uint32_t)B[t] << 32 | (uint32_t)A[t]; uint32_t s = (uint32_t)C[t]; uint32_t r = 0;
       for (int b = 0; b < 4; b++) {
         uint32_t q = 0;
         if (i.mode == 0) q = (s >> (4 * b)) & 15;
         else {
           uint32_t k = s & 3;
           switch (i.mode) {
             case 1: q = (k + b) & 7; break;
             case 2: q = (k - b) & 7; break;
             case 3: q = k; break;
             case 4: q = std::max<uint32_t>(k, b); break;
             case 5: q = std::min<uint32_t>(k, b); break;
             case 6: q = (k & 1) * 2 + (b & 1); break;
           }
         }
         uint32_t by = (v >> (8 * (q & 7))) & 255;
         if (q & 8) by = (by & 128) ? 255 : 0;
         r |= by << (8 * b);
       } D[t] = r);
}
static void f_lop3(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  uint32_t lut = (uint32_t)i.imm;
  EACH(uint32_t a = (uint32_t)A[t]; uint32_t b = (uint32_t)B[t]; uint32_t e = (uint32_t)C[t]; uint32_t r = 0;
       for (int m = 0; m < 8; m++) if (lut >> m & 1) r |= ((m & 4) ? a : ~a) & ((m & 2) ? b : ~b) & ((m & 1) ? e : ~e);
       D[t] = r);
}
template <class T>
static void f_sad(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  typedef typename std::make_unsigned<T>::type U;
  EACH(T a = unpack<T>(A[t]); T b = unpack<T>(B[t]);
       D[t] = pack<U>(U(U(a < b ? U(b) - U(a) : U(a) - U(b)) + unpack<U>(C[t]))));
}
static void f_dp4a(Ctx &c, const Ins &i) {  // mode bit0 a signed, bit1 b signed
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(int32_t r = (int32_t)C[t]; for (int b = 0; b < 4; b++) {
    uint8_t x = A[t] >> (8 * b);
    uint8_t y = B[t] >> (8 * b);
    r += ((i.mode & 1) ? (int)(int8_t)x : (int)x) * ((i.mode & 2) ? (int)(int8_t)y : (int)y);
  } D[t] = (uint32_t)r);
}

// compare
enum { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
template <class T>
static inline bool cmpi(int m, T a, T b) {
  switch (m) {
    case EQ: return a == b;
    case NE: return a != b;
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    case GE: return a >= b;
  }
  return false;
}
template <class T>
static inline bool cmpf(int m, T a, T b) {
  bool u = (a != a) || (b != b);
  switch (m) {
    case EQ: return !u && a == b;
    case NE: return !u && a != b;
    case LT: return !u && a < b;
    case LE: return !u && a <= b;
    case GT: return !u && a > b;
    case GE: return !u && a >= b;
    case EQU: return u || a == b;
    case NEU: return u || a != b;
    case LTU: return u || a < b;
    case LEU: return u || a <= b;
    case GTU: return u || a > b;
    case GEU: return u || a >= b;
    case NUM: return !u;
    case NAN_: return u;
  }
  return false;
}
template <class T, bool FL, int M>
static inline bool cmp1(T a, T b) {
  return FL ? cmpf<T>(M, a, b) : cmpi<T>(M, a, b);
}
// fast form: no combination, one destination
template <class T, bool FL, int M>
static void f_setp(Ctx &c, const Ins &i) {
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  uint64_t *D = i.d[0] >= 0 ? c.r(i.d[0]) : nullptr, *Q = i.d[1] >= 0 ? c.r(i.d[1]) : nullptr;
  if (i.mode2 == 0 && D && !Q) {
    EACH(D[t] = (cmp1<T, FL, M>(unpack<T>(A[t]), unpack<T>(B[t]))));
    return;
  }
  const uint64_t *C = i.s[2] >= 0 ? c.r(i.s[2]) : nullptr;
  EACH(bool r = (cmp1<T, FL, M>(unpack<T>(A[t]), unpack<T>(B[t]))); bool q = !r; if (C) {
    bool x = (C[t] & 1) != i.sneg;
    switch (i.mode2) {
      case 1:
        r = r && x;
        q = q && x;
        break;
      case 2:
        r = r || x;
        q = q || x;
        break;
      case 3:
        r = r != x;
        q = q != x;
        break;
    }
  } if (D) D[t] = r;
       if (Q) Q[t] = q);
}
template <class T, bool FL>
static Fn sel_cmp(int m) {
  switch (m) {
    case EQ: return f_setp<T, FL, EQ>;
    case NE: return f_setp<T, FL, NE>;
    case LT: return f_setp<T, FL, LT>;
    case LE: return f_setp<T, FL, LE>;
    case GT: return f_setp<T, FL, GT>;
    case GE: return f_setp<T, FL, GE>;
  }
  if (FL) switch (m) {
      case EQU: return f_setp<T, FL, EQU>;
      case NEU: return f_setp<T, FL, NEU>;
      case LTU: return f_setp<T, FL, LTU>;
      case LEU: return f_setp<T, FL, LEU>;
      case GTU: return f_setp<T, FL, GTU>;
      case GEU: return f_setp<T, FL, GEU>;
      case NUM: return f_setp<T, FL, NUM>;
      case NAN_: return f_setp<T, FL, NAN_>;
    }
  return nullptr;
}
template <class H>
static void f_setp_x2(Ctx &c, const Ins &i) {
  typedef x2<H> X;
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  EACH(X a = unpack<X>(A[t]); X b = unpack<X>(B[t]); if (i.d[0] >= 0) c.r(i.d[0])[t] = cmpf<float>(i.mode, a.a, b.a);
       if (i.d[1] >= 0) c.r(i.d[1])[t] = cmpf<float>(i.mode, a.b, b.b));
}
static void f_set(Ctx &c, const Ins &i) {  // set.cmp.dtype.stype
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  const uint64_t *C = i.s[2] >= 0 ? c.r(i.s[2]) : nullptr;
  EACH(
      bool r = false; switch (i.ty2) {
        case F32: r = cmpf<float>(i.mode, unpack<float>(A[t]), unpack<float>(B[t])); break;
        case F64: r = cmpf<double>(i.mode, unpack<double>(A[t]), unpack<double>(B[t])); break;
        case F16: r = cmpf<float>(i.mode, unpack<h16>(A[t]), unpack<h16>(B[t])); break;
        case BF16: r = cmpf<float>(i.mode, unpack<b16f>(A[t]), unpack<b16f>(B[t])); break;
        case U16:
        case B16: r = cmpi<uint16_t>(i.mode, A[t], B[t]); break;
        case S16: r = cmpi<int16_t>(i.mode, A[t], B[t]); break;
        case U32:
        case B32: r = cmpi<uint32_t>(i.mode, A[t], B[t]); break;
        case S32: r = cmpi<int32_t>(i.mode, A[t], B[t]); break;
        case U64:
        case B64: r = cmpi<uint64_t>(i.mode, A[t], B[t]); break;
        case S64: r = cmpi<int64_t>(i.mode, A[t], B[t]); break;
        case F16X2:
        case BF16X2: {
          uint32_t o = 0;
          for (int h = 0; h < 2; h++) {
            uint16_t x = A[t] >> (16 * h);
            uint16_t y = B[t] >> (16 * h);
            bool q = i.ty2 == F16X2 ? cmpf<float>(i.mode, half_to_float(x), half_to_float(y))
                                    : cmpf<float>(i.mode, bf16_to_float(x), bf16_to_float(y));
            uint32_t one = i.ty == F16X2 ? 0x3c00 : i.ty == BF16X2 ? 0x3f80 : 0xffff;
            if (q) o |= one << (16 * h);
          }
          D[t] = o;
          continue;
        }
        default: break;
      } if (C) {
        bool x = (C[t] & 1) != i.sneg;
        r = i.mode2 == 1 ? r && x : i.mode2 == 2 ? r || x : r != x;
      } D[t] = r ? (i.ty == F32    ? 0x3f800000u
                    : i.ty == F16  ? 0x3c00u
                    : i.ty == BF16 ? 0x3f80u
                                   : 0xffffffffu)
                 : 0);
}
static void f_selp(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *P = c.r(i.s[2]);
  EACH(D[t] = ((P[t] & 1) != i.sneg) ? A[t] : B[t]);
}
static void f_slct(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = c.r(i.s[2]);
  EACH(bool p = i.ty2 == F32 ? unpack<float>(C[t]) >= 0 : unpack<int32_t>(C[t]) >= 0; D[t] = p ? A[t] : B[t]);
}
static void f_testp(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(double x = i.ty == F32 ? (double)unpack<float>(A[t]) : unpack<double>(A[t]);
       bool sub =
           i.ty == F32 ? std::fpclassify(unpack<float>(A[t])) == FP_SUBNORMAL : std::fpclassify(x) == FP_SUBNORMAL;
       bool r = false; switch (i.mode) {
         case 0: r = std::isfinite(x); break;
         case 1: r = std::isinf(x); break;
         case 2: r = x == x; break;
         case 3: r = x != x; break;
         case 4: r = std::isfinite(x) && !sub && x != 0; break;
         case 5: r = sub; break;
       } D[t] = r);
}

// conversions
enum { RM_NONE, RNI, RZI, RMI, RPI };
static inline double rnd(double x, int m) {
  switch (m) {
    case RNI: return std::nearbyint(x);
    case RZI: return std::trunc(x);
    case RMI: return std::floor(x);
    case RPI: return std::ceil(x);
  }
  return x;
}
template <class S>
struct Src {
  typedef S V;
  static S get(uint64_t v) { return unpack<S>(v); }
  static const bool fl = false;
};
template <>
struct Src<float> {
  typedef double V;
  static double get(uint64_t v) { return unpack<float>(v); }
  static const bool fl = true;
};
template <>
struct Src<double> {
  typedef double V;
  static double get(uint64_t v) { return unpack<double>(v); }
  static const bool fl = true;
};
template <>
struct Src<h16> {
  typedef double V;
  static double get(uint64_t v) { return (float)unpack<h16>(v); }
  static const bool fl = true;
};
template <>
struct Src<b16f> {
  typedef double V;
  static double get(uint64_t v) { return (float)unpack<b16f>(v); }
  static const bool fl = true;
};
template <class D>
struct Dst {  // integers
  static uint64_t fromf(double x, const Ins &i) {
    if (x != x)
      return (i.ty2 == F64 && sizeof(D) >= 4)
                 ? pack<D>(D(-1) < D(0) ? std::numeric_limits<D>::min() : D(D(1) << (8 * sizeof(D) - 1)))
                 : 0;
    x = rnd(x, i.mode ? i.mode : RZI);
    double lo = (double)std::numeric_limits<D>::min(),
           hi = std::ldexp(1.0, (int)(8 * sizeof(D)) - (D(-1) < D(0) ? 1 : 0));
    D v = x < lo ? std::numeric_limits<D>::min() : x >= hi ? std::numeric_limits<D>::max() : (D)x;
    return (D(-1) < D(0)) ? (uint64_t)(int64_t)v : (uint64_t)v;
  }
  template <class S>
  static uint64_t fromi(S s, const Ins &i) {
    D v;
    if (i.sat) {
      __int128 x = s;
      __int128 lo = std::numeric_limits<D>::min(), hi = std::numeric_limits<D>::max();
      v = (D)(x < lo ? lo : x > hi ? hi : x);
    } else v = (D)s;
    return (D(-1) < D(0)) ? (uint64_t)(int64_t)v : (uint64_t)v;
  }
};
template <>
struct Dst<float> {
  static uint64_t fromf(double x, const Ins &i) {
    if (i.mode) x = rnd(x, i.mode);
    float f = (float)x;
    if (i.sat) f = f != f ? 0 : f < 0 ? 0 : f > 1 ? 1 : f;
    return pack<float>(f);
  }
  template <class S>
  static uint64_t fromi(S s, const Ins &) {
    return pack<float>((float)s);
  }
};
template <>
struct Dst<double> {
  static uint64_t fromf(double x, const Ins &i) {
    if (i.mode) x = rnd(x, i.mode);
    if (i.sat) x = x != x ? 0 : x < 0 ? 0 : x > 1 ? 1 : x;
    return pack<double>(x);
  }
  template <class S>
  static uint64_t fromi(S s, const Ins &) {
    return pack<double>((double)s);
  }
};
static inline double oddint(__int128 s) {  // integer to double keeping a sticky bit, so that a second rounding is right
  if (s > -(__int128(1) << 52) && s < (__int128(1) << 52)) return (double)(int64_t)s;
  bool n = s < 0;
  u128 u = n ? -(u128)s : (u128)s;
  int sh = 0;
  while (u >> (sh + 52)) sh++;
  u128 q = u >> sh;
  if (u & (((u128)1 << sh) - 1)) q |= 1;
  double d = std::ldexp((double)(uint64_t)q, sh);
  return n ? -d : d;
}
template <>
struct Dst<h16> {
  static uint64_t fromf(double x, const Ins &i) {
    if (i.mode) x = rnd(x, i.mode);
    if (i.sat) x = x != x ? 0 : x < 0 ? 0 : x > 1 ? 1 : x;
    return to_half(x, i.csr & 3);
  }
  template <class S>
  static uint64_t fromi(S s, const Ins &i) {
    return to_half(oddint((__int128)s), i.csr & 3);
  }
};
template <>
struct Dst<b16f> {
  static uint64_t fromf(double x, const Ins &i) {
    if (i.mode) x = rnd(x, i.mode);
    return to_bf16(x, i.csr & 3);
  }
  template <class S>
  static uint64_t fromi(S s, const Ins &i) {
    return to_bf16(oddint((__int128)s), i.csr & 3);
  }
};
template <class D, class S>
static void f_cvt(Ctx &c, const Ins &i) {
  uint64_t *R = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  if constexpr (Src<S>::fl) {
    EACH(R[t] = Dst<D>::fromf(Src<S>::get(A[t]), i));
  } else {
    EACH(R[t] = Dst<D>::template fromi<S>(Src<S>::get(A[t]), i));
  }
}
template <class D>
static Fn sel_cvt1(Ty s) {
  switch (s) {
    case U8:
    case B8: return f_cvt<D, uint8_t>;
    case S8: return f_cvt<D, int8_t>;
    case U16:
    case B16: return f_cvt<D, uint16_t>;
    case S16: return f_cvt<D, int16_t>;
    case U32:
    case B32: return f_cvt<D, uint32_t>;
    case S32: return f_cvt<D, int32_t>;
    case U64:
    case B64: return f_cvt<D, uint64_t>;
    case S64: return f_cvt<D, int64_t>;
    case F16: return f_cvt<D, h16>;
    case BF16: return f_cvt<D, b16f>;
    case F32: return f_cvt<D, float>;
    case F64: return f_cvt<D, double>;
    default: return nullptr;
  }
}
static Fn sel_cvt(Ty d, Ty s) {
  switch (d) {
    case U8:
    case B8: return sel_cvt1<uint8_t>(s);
    case S8: return sel_cvt1<int8_t>(s);
    case U16:
    case B16: return sel_cvt1<uint16_t>(s);
    case S16: return sel_cvt1<int16_t>(s);
    case U32:
    case B32: return sel_cvt1<uint32_t>(s);
    case S32: return sel_cvt1<int32_t>(s);
    case U64:
    case B64: return sel_cvt1<uint64_t>(s);
    case S64: return sel_cvt1<int64_t>(s);
    case F16: return sel_cvt1<h16>(s);
    case BF16: return sel_cvt1<b16f>(s);
    case F32: return sel_cvt1<float>(s);
    case F64: return sel_cvt1<double>(s);
    default: return nullptr;
  }
}
static void f_cvt2(Ctx &c, const Ins &i) {  // cvt.rn.f16x2.f32 d, hi, lo
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  bool bf = i.ty == BF16X2;
  EACH(double a = unpack<float>(A[t]); double b = unpack<float>(B[t]);
       uint32_t h = bf ? to_bf16(a, i.csr & 3) : to_half(a, i.csr & 3);
       uint32_t l = bf ? to_bf16(b, i.csr & 3) : to_half(b, i.csr & 3); D[t] = h << 16 | l);
}

// memory
template <class T>
static inline uint64_t ldx(const uint8_t *p) {
  T v;
  memcpy(&v, p, sizeof(T));
  return (T(-1) < T(0)) ? (uint64_t)(int64_t)v : (uint64_t)v;
}
static inline uint64_t load_any(Ty ty, const uint8_t *p) {
  switch (ty) {
    case U8:
    case B8: return ldx<uint8_t>(p);
    case S8: return ldx<int8_t>(p);
    case U16:
    case B16:
    case F16:
    case BF16: return ldx<uint16_t>(p);
    case S16: return ldx<int16_t>(p);
    case S32: return ldx<int32_t>(p);
    case U64:
    case B64:
    case S64:
    case F64: return ldx<uint64_t>(p);
    default: return ldx<uint32_t>(p);
  }
}
template <class T>
static void f_ld(Ctx &c, const Ins &i) {
  const uint64_t *A = c.r(i.s[0]);
  if (i.vec == 1) {
    uint64_t *D = c.r(i.d[0]);
    EACH(D[t] = ldx<T>(c.at(A[t] + i.imm + c.base(i.space, t), sizeof(T), i, t)));
    return;
  }
  EACH(uint8_t *p = c.at(A[t] + i.imm + c.base(i.space, t), sizeof(T) * i.vec, i, t);
       for (int j = 0; j < i.vec; j++) if (i.d[j] >= 0) c.r(i.d[j])[t] = ldx<T>(p + j * sizeof(T)));
}
template <class T>
static void f_st(Ctx &c, const Ins &i) {
  const uint64_t *A = c.r(i.s[0]);
  if (i.vec == 1) {
    const uint64_t *B = c.r(i.s[1]);
    EACH(uint8_t *p = c.at(A[t] + i.imm + c.base(i.space, t), sizeof(T), i, t, true); T v = (T)B[t];
         memcpy(p, &v, sizeof(T)));
    return;
  }
  EACH(uint8_t *p = c.at(A[t] + i.imm + c.base(i.space, t), sizeof(T) * i.vec, i, t, true);
       for (int j = 0; j < i.vec; j++) {
         T v = (T)c.r(i.s[1 + j])[t];
         memcpy(p + j * sizeof(T), &v, sizeof(T));
       });
}
static void f_cvta(Ctx &c, const Ins &i) {  // mode 0: to generic, 1: to space
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  if (i.mode == 0) {
    EACH(D[t] = A[t] + c.base(i.space, t));
  } else {
    EACH(D[t] = A[t] - c.base(i.space, t));
  }
}
static void f_isspacep(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  const uint64_t *A = c.r(i.s[0]);
  EACH(uint64_t a = A[t]; bool sh = a - (uint64_t)c.shared < c.shared_size;
       bool lc = c.local && a - (uint64_t)c.local < c.local_size * c.N; bool pa = a - (uint64_t)c.params < c.param_size;
       D[t] = i.space == SHARED   ? sh
              : i.space == LOCAL  ? lc
              : i.space == PARAM  ? pa
              : i.space == CONSTS ? false
                                  : !sh && !lc && !pa);
}
enum { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC };
template <class T>
static inline T atomic_op(int m, T o, T b, T cc, const Ins &) {
  switch (m) {
    case A_ADD: return OAdd::f<T>(o, b);
    case A_EXCH: return b;
    case A_MIN: return b < o ? b : o;
    case A_MAX: return o < b ? b : o;
    default: return b;
  }
}
template <class T>
static inline T atomic_int(int m, T o, T b, T cc) {
  switch (m) {
    case A_AND: return o & b;
    case A_OR: return o | b;
    case A_XOR: return o ^ b;
    case A_CAS: return o == b ? cc : o;
    case A_INC: return o >= b ? T(0) : T(o + 1);
    case A_DEC: return (o == 0 || o > b) ? b : T(o - 1);
  }
  return o;
}
template <class T, bool INT>
static void f_atom(Ctx &c, const Ins &i) {
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]), *C = i.s[2] >= 0 ? c.r(i.s[2]) : nullptr;
  uint64_t *D = i.d[0] >= 0 ? c.r(i.d[0]) : nullptr;
  EACH(
      uint8_t *p = c.at(A[t] + i.imm + c.base(i.space, t), sizeof(T), i, t, true); T o; memcpy(&o, p, sizeof(T));
      T b = unpack<T>(B[t]); T cc = C ? unpack<T>(C[t]) : T(0); T r; if constexpr (INT) {
        r = (i.mode == A_ADD || i.mode == A_MIN || i.mode == A_MAX || i.mode == A_EXCH)
                ? atomic_op<T>(i.mode, o, b, cc, i)
                : atomic_int<T>(i.mode, o, b, cc);
      } else { r = atomic_op<T>(i.mode, o, b, cc, i); } memcpy(p, &r, sizeof(T));
      if (D) D[t] = pack<T>(o));
}
template <class H>
static void f_atomx2(Ctx &c, const Ins &i) {
  typedef x2<H> X;
  const uint64_t *A = c.r(i.s[0]), *B = c.r(i.s[1]);
  uint64_t *D = i.d[0] >= 0 ? c.r(i.d[0]) : nullptr;
  EACH(uint8_t *p = c.at(A[t] + i.imm + c.base(i.space, t), 4, i, t, true); X o; memcpy(&o, p, 4);
       X b = unpack<X>(B[t]); X r; r.a = OAdd::f<H>(o.a, b.a); r.b = OAdd::f<H>(o.b, b.b); memcpy(p, &r, 4);
       if (D) D[t] = pack<X>(o));
}
static void f_nop(Ctx &, const Ins &) {}
static void f_clock(Ctx &c, const Ins &i) {
  uint64_t v = std::chrono::steady_clock::now().time_since_epoch().count();
  uint64_t *D = c.r(i.d[0]);
  EACH(D[t] = i.sz == 4 ? (uint32_t)v : v);
}
static void f_satf(Ctx &c, const Ins &i) {
  uint64_t *D = c.r(i.d[0]);
  if (i.ty == F32) {
    EACH(float f = unpack<float>(D[t]); D[t] = pack<float>(f != f ? 0 : f < 0 ? 0 : f > 1 ? 1 : f));
  } else if (i.ty == F64) {
    EACH(double f = unpack<double>(D[t]); D[t] = pack<double>(f != f ? 0 : f < 0 ? 0 : f > 1 ? 1 : f));
  } else if (i.ty == F16) {
    EACH(float f = unpack<h16>(D[t]); D[t] = pack<h16>(h16(f != f ? 0 : f < 0 ? 0 : f > 1 ? 1 : f)));
  }
}
static void f_relu(Ctx &c, const Ins &i) {
  (void)c;
  (void)i;
}

// vprintf: s0 = format pointer, s1 = argument buffer (generic addresses)
static void f_printf(Ctx &c, const Ins &i) {
  EACH(
      std::string fmt; uint64_t fa = c.r(i.s[0])[t]; for (;;) {
        char ch = *(char *)c.at(fa++, 1, i, t);
        if (!ch) break;
        fmt += ch;
      } uint64_t ap = c.r(i.s[1])[t];
      std::string out; for (size_t k = 0; k < fmt.size(); k++) {
        if (fmt[k] != '%') {
          out += fmt[k];
          continue;
        }
        if (fmt[k + 1] == '%') {
          out += '%';
          k++;
          continue;
        }
        size_t e = k + 1;
        while (e < fmt.size() && !strchr("diouxXeEfFgGaAcsp", fmt[e])) e++;
        std::string sp = fmt.substr(k, e - k + 1);
        char cv = fmt[e];
        bool ll = sp.find('l') != std::string::npos || cv == 'p' || cv == 's';
        char b[512];
        if (strchr("eEfFgGaA", cv)) {
          ap = (ap + 7) & ~7ull;
          double d;
          memcpy(&d, c.at(ap, 8, i, t), 8);
          ap += 8;
          snprintf(b, sizeof b, sp.c_str(), d);
        } else if (ll) {
          ap = (ap + 7) & ~7ull;
          uint64_t v;
          memcpy(&v, c.at(ap, 8, i, t), 8);
          ap += 8;
          snprintf(b, sizeof b, sp.c_str(), v);
        } else {
          ap = (ap + 3) & ~3ull;
          uint32_t v;
          memcpy(&v, c.at(ap, 4, i, t), 4);
          ap += 4;
          snprintf(b, sizeof b, sp.c_str(), v);
        }
        out += b;
        k = e;
      } fputs(out.c_str(), stdout);
      if (i.d[0] >= 0) c.r(i.d[0])[t] = 0);
  fflush(stdout);
}
static void f_assertfail(Ctx &c, const Ins &i) { throw Fault(710, "kernel " + c.k->name + ": device-side assert"); }
static void f_trap(Ctx &c, const Ins &i) { throw Fault(719, "kernel " + c.k->name + ": trap"); }

// ---------------------------------------------------------------- warp operations (called once all lanes are there)
enum { W_SHFL, W_VOTE, W_ACTIVE, W_MATCH, W_REDUX, W_SYNC, W_ELECT };
static void f_warp(Ctx &c, const Ins &i) {
  // gather active lanes per warp, in order
  uint32_t nw = (c.n + 31) / 32;
  std::vector<uint32_t> gm(nw, 0);
  EACH(gm[t >> 5] |= 1u << (t & 31));
  for (uint32_t w = 0; w < nw; w++) {
    uint32_t m = gm[w];
    if (!m) continue;
    uint32_t b0 = w * 32;
    auto lanes = [&](std::function<void(int)> f) {
      for (int l = 0; l < 32; l++)
        if (m >> l & 1) f(l);
    };
    switch (i.mode) {
      case W_SYNC: break;
      case W_ACTIVE: lanes([&](int l) { c.r(i.d[0])[b0 + l] = m; }); break;
      case W_ELECT: {
        int first = __builtin_ctz(m);
        lanes([&](int l) {
          if (i.d[0] >= 0) c.r(i.d[0])[b0 + l] = first;
          if (i.d[1] >= 0) c.r(i.d[1])[b0 + l] = l == first;
        });
        break;
      }
      case W_SHFL: {
        uint64_t snap[32];
        for (int l = 0; l < 32; l++)
          if (b0 + l < c.N) snap[l] = c.r(i.s[0])[b0 + l];
          else snap[l] = 0;
        uint64_t out[32];
        bool ok[32];
        lanes([&](int l) {
          uint32_t bv = (uint32_t)c.r(i.s[1])[b0 + l] & 31, cv = (uint32_t)c.r(i.s[2])[b0 + l];
          int seg = (cv >> 8) & 31, cl = cv & 31;
          int mx = (l & seg) | (cl & ~seg), mn = l & seg;
          int j;
          bool p;
          switch (i.mode2) {
            case 0:
              j = l - (int)bv;
              p = j >= mx;
              break;
            case 1:
              j = l + (int)bv;
              p = j <= mx;
              break;
            case 2:
              j = l ^ (int)bv;
              p = j <= mx;
              break;
            default: j = mn | ((int)bv & ~seg); p = j <= mx;
          }
          if (!p) j = l;
          out[l] = (m >> j & 1) ? snap[j] : snap[l];
          ok[l] = p;
        });
        lanes([&](int l) {
          if (i.d[0] >= 0) c.r(i.d[0])[b0 + l] = (uint32_t)out[l];
          if (i.d[1] >= 0) c.r(i.d[1])[b0 + l] = ok[l];
        });
        break;
      }
      case W_VOTE: {
        uint32_t bal = 0;
        lanes([&](int l) {
          if (((c.r(i.s[0])[b0 + l] & 1) != 0) != i.sneg) bal |= 1u << l;
        });
        lanes([&](int l) {
          uint32_t mm = i.s[1] >= 0 ? (uint32_t)c.r(i.s[1])[b0 + l] & m : m;
          uint32_t b = bal & mm;
          uint64_t r = 0;
          switch (i.mode2) {
            case 0: r = b == mm; break;
            case 1: r = b != 0; break;
            case 2: r = b == mm || b == 0; break;
            case 3: r = b; break;
          }
          c.r(i.d[0])[b0 + l] = r;
        });
        break;
      }
      case W_MATCH: {
        uint64_t msk = i.sz == 8 ? ~0ull : 0xffffffffull;
        uint64_t snap[32];
        lanes([&](int l) { snap[l] = c.r(i.s[0])[b0 + l] & msk; });
        lanes([&](int l) {
          uint32_t mm = (uint32_t)c.r(i.s[1])[b0 + l] & m;
          uint32_t e = 0;
          for (int q = 0; q < 32; q++)
            if ((mm >> q & 1) && snap[q] == snap[l]) e |= 1u << q;
          if (i.mode2 == 0) c.r(i.d[0])[b0 + l] = e;
          else {
            c.r(i.d[0])[b0 + l] = e == mm ? mm : 0;
            if (i.d[1] >= 0) c.r(i.d[1])[b0 + l] = e == mm;
          }
        });
        break;
      }
      case W_REDUX: {
        uint64_t snap[32];
        lanes([&](int l) { snap[l] = c.r(i.s[0])[b0 + l]; });
        lanes([&](int l) {
          uint32_t mm = (uint32_t)c.r(i.s[1])[b0 + l] & m;
          bool first = true;
          uint32_t acc = 0;
          for (int q = 0; q < 32; q++)
            if (mm >> q & 1) {
              uint32_t v = (uint32_t)snap[q];
              if (first) {
                acc = v;
                first = false;
                continue;
              }
              switch (i.mode2) {
                case A_ADD: acc += v; break;
                case A_AND: acc &= v; break;
                case A_OR: acc |= v; break;
                case A_XOR: acc ^= v; break;
                case A_MIN: acc = i.ty == S32 ? (uint32_t)std::min((int32_t)acc, (int32_t)v) : std::min(acc, v); break;
                case A_MAX: acc = i.ty == S32 ? (uint32_t)std::max((int32_t)acc, (int32_t)v) : std::max(acc, v); break;
              }
            }
          c.r(i.d[0])[b0 + l] = acc;
        });
        break;
      }
    }
  }
}

// ---------------------------------------------------------------- text handling
static std::string strip_comments(const char *s) {
  std::string o;
  for (; *s;) {
    if (s[0] == '/' && s[1] == '/') {
      while (*s && *s != '\n') s++;
    } else if (s[0] == '/' && s[1] == '*') {
      s += 2;
      while (*s && !(s[0] == '*' && s[1] == '/')) s++;
      if (*s) s += 2;
    } else if (*s == '"') {
      o += *s++;
      while (*s && *s != '"') o += *s++;
      if (*s) o += *s++;
    } else o += *s++;
  }
  return o;
}
static std::string trim(const std::string &s) {
  size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
  return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}
static std::vector<std::string> split(const std::string &s, char sep) {  // at depth 0
  std::vector<std::string> o;
  int d = 0;
  std::string cur;
  for (char ch : s) {
    if (ch == '(' || ch == '{' || ch == '[') d++;
    if (ch == ')' || ch == '}' || ch == ']') d--;
    if (ch == sep && d == 0) {
      o.push_back(trim(cur));
      cur.clear();
    } else cur += ch;
  }
  cur = trim(cur);
  if (!cur.empty() || !o.empty()) o.push_back(cur);
  return o;
}
static std::vector<std::string> words(const std::string &s) {
  std::vector<std::string> o;
  std::string cur;
  for (char ch : s) {
    if (isspace((unsigned char)ch)) {
      if (!cur.empty()) o.push_back(cur), cur.clear();
    } else cur += ch;
  }
  if (!cur.empty()) o.push_back(cur);
  return o;
}
static Ty ty_of(const std::string &s) {
  static const std::unordered_map<std::string, Ty> m = {
      {"pred", PRED}, {"b8", B8},     {"b16", B16},     {"b32", B32},     {"b64", B64},       {"u8", U8},
      {"u16", U16},   {"u32", U32},   {"u64", U64},     {"s8", S8},       {"s16", S16},       {"s32", S32},
      {"s64", S64},   {"f16", F16},   {"bf16", BF16},   {"f16x2", F16X2}, {"bf16x2", BF16X2}, {"f32", F32},
      {"f64", F64},   {"b128", B128}, {"u16x2", U16X2}, {"s16x2", S16X2}, {"f32x2", F32X2}};
  auto it = m.find(s);
  return it == m.end() ? NOTY : it->second;
}
static bool parse_imm(const std::string &t, uint64_t &v) {
  if (t.empty()) return false;
  if (t.size() > 2 && t[0] == '0' && (t[1] == 'f' || t[1] == 'F')) {
    v = strtoull(t.c_str() + 2, nullptr, 16);
    return true;
  }
  if (t.size() > 2 && t[0] == '0' && (t[1] == 'd' || t[1] == 'D')) {
    v = strtoull(t.c_str() + 2, nullptr, 16);
    return true;
  }
  size_t p = (t[0] == '-' || t[0] == '+') ? 1 : 0;
  if (p >= t.size() || !isdigit((unsigned char)t[p])) return false;
  if (t.find('.') != std::string::npos) {
    double d = strtod(t.c_str(), nullptr);
    v = pack<double>(d);
    return true;
  }
  std::string q = t.substr(p);
  while (!q.empty() && (q.back() == 'U' || q.back() == 'u')) q.pop_back();
  uint64_t x;
  if (q.size() > 2 && q[0] == '0' && (q[1] == 'b' || q[1] == 'B')) x = strtoull(q.c_str() + 2, nullptr, 2);
  else x = strtoull(q.c_str(), nullptr, 0);
  v = t[0] == '-' ? (uint64_t)(-(int64_t)x) : x;
  return true;
}

// a declared variable: ".align 4 .b8 name[40] = {...}" -> name, size, init text
struct Decl {
  std::string name, init;
  Ty ty = NOTY;
  uint64_t size = 0;
  uint32_t align = 1;
  bool unsized = false;
};
static Decl parse_decl(const std::string &text) {
  Decl d;
  std::string s = text;
  size_t eq = s.find('=');
  if (eq != std::string::npos) {
    d.init = trim(s.substr(eq + 1));
    s = s.substr(0, eq);
  }
  std::string s2;
  for (char ch : s) {
    if (ch == '[') s2 += " [";
    else s2 += ch;
  }
  auto w = words(s2);
  uint64_t count = 1;
  int vecw = 1;
  for (size_t i = 0; i < w.size(); i++) {
    if (w[i] == ".align") {
      d.align = atoi(w[++i].c_str());
    } else if (w[i] == ".v2") vecw = 2;
    else if (w[i] == ".v4") vecw = 4;
    else if (w[i] == ".ptr" || w[i] == ".global" || w[i] == ".const" || w[i] == ".shared" || w[i] == ".local" ||
             w[i] == ".param" || w[i] == ".visible" || w[i] == ".extern" || w[i] == ".weak" || w[i] == ".common" ||
             w[i] == ".managed") {
    } else if (w[i][0] == '.') {
      Ty t = ty_of(w[i].substr(1));
      if (t != NOTY) d.ty = t;
    } else if (w[i][0] == '[') {
      std::string q = w[i].substr(1);
      while (q.find(']') == std::string::npos && i + 1 < w.size()) q += w[++i];
      q = trim(q.substr(0, q.find(']')));
      if (q.empty()) {
        d.unsized = true;
        count = 0;
      } else count *= strtoull(q.c_str(), nullptr, 0);
    } else d.name = w[i];
  }
  d.size = count * ty_size(d.ty) * vecw;
  d.align = std::max<uint32_t>(d.align, ty_size(d.ty) ? ty_size(d.ty) : 1);
  return d;
}

static size_t match_brace(const std::string &s, size_t p) {
  int d = 0;
  for (; p < s.size(); p++) {
    if (s[p] == '"') {
      p++;
      while (p < s.size() && s[p] != '"') p++;
      continue;
    }
    if (s[p] == '{') d++;
    else if (s[p] == '}') {
      if (--d == 0) return p;
    }
  }
  return std::string::npos;
}

Module *module_load(const char *ptx, std::string &err) {
  auto m = std::make_unique<Module>();
  m->text = strip_comments(ptx);
  const std::string &s = m->text;
  size_t p = 0;
  struct Init {
    std::string name, text;
    Ty ty;
  };
  std::vector<Init> inits;
  try {
    while (true) {
      while (p < s.size() && isspace((unsigned char)s[p])) p++;
      if (p >= s.size()) break;
      size_t q = p;
      while (q < s.size() && s[q] != ';' && s[q] != '{' && s[q] != '\n') q++;
      std::string head = s.substr(p, q - p);
      auto w = words(head);
      if (w.empty()) {
        p = q + 1;
        continue;
      }
      if (w[0] == ".version" || w[0] == ".target" || w[0] == ".address_size" || w[0] == ".file" || w[0] == ".loc" ||
          w[0] == ".pragma") {
        size_t e = s.find('\n', p);
        p = e == std::string::npos ? s.size() : e + 1;
        continue;
      }
      if (w[0] == ".section") {
        size_t b = s.find('{', p);
        size_t e = match_brace(s, b);
        p = e + 1;
        continue;
      }
      if (w[0] == ".alias") {
        p = s.find(';', p) + 1;
        continue;
      }
      bool isfunc = false, isentry = false, ext = false, var = false;
      Space sp = GLOBAL;
      for (auto &x : w) {
        std::string y = x.substr(0, x.find('('));
        if (y == ".func") isfunc = true;
        if (y == ".entry") isfunc = isentry = true;
        if (x == ".extern") ext = true;
        if (x == ".global") var = true, sp = GLOBAL;
        if (x == ".const") var = true, sp = CONSTS;
        if (x == ".shared") var = true, sp = SHARED;
        if (isfunc) break;
      }
      if (isfunc) {
        size_t b = p;
        int dp = 0;
        while (b < s.size() && !(dp == 0 && (s[b] == '{' || s[b] == ';'))) {
          if (s[b] == '(') dp++;
          if (s[b] == ')') dp--;
          b++;
        }
        std::string sig = s.substr(p, b - p);
        FuncSrc f;
        f.entry = isentry;
        size_t k = sig.find(isentry ? ".entry" : ".func") + (isentry ? 6 : 5);
        auto skip = [&]() {
          while (k < sig.size() && isspace((unsigned char)sig[k])) k++;
        };
        skip();
        if (sig[k] == '(') {
          size_t e = sig.find(')', k);
          f.rets = sig.substr(k + 1, e - k - 1);
          k = e + 1;
          skip();
        }
        while (sig.compare(k, 9, ".noreturn") == 0) {
          k += 9;
          skip();
        }
        size_t e = k;
        while (e < sig.size() && !isspace((unsigned char)sig[e]) && sig[e] != '(') e++;
        f.name = sig.substr(k, e - k);
        k = e;
        skip();
        if (k < sig.size() && sig[k] == '(') {
          int d2 = 0;
          size_t e2 = k;
          for (; e2 < sig.size(); e2++) {
            if (sig[e2] == '(') d2++;
            if (sig[e2] == ')' && --d2 == 0) break;
          }
          f.params = sig.substr(k + 1, e2 - k - 1);
          k = e2 + 1;
        }
        size_t mt = sig.find(".maxntid", k);
        if (mt != std::string::npos) {
          auto v = split(sig.substr(mt + 8), ',');
          int pr = 1;
          for (auto &x : v) {
            int q2 = atoi(x.c_str());
            if (q2 > 0) pr *= q2;
          }
          f.maxntid = pr;
        }
        if (s[b] == '{') {
          size_t e3 = match_brace(s, b);
          f.body = s.substr(b + 1, e3 - b - 1);
          p = e3 + 1;
          auto it = m->funcs.find(f.name);
          m->funcs[f.name] = f;
          (void)it;
        } else {
          p = b + 1;
          if (!m->funcs.count(f.name)) m->funcs[f.name] = f;
        }
        continue;
      }
      if (var) {
        size_t b = p;
        int dp = 0;
        while (b < s.size() && !(dp == 0 && s[b] == ';')) {
          if (s[b] == '{') dp++;
          if (s[b] == '}') dp--;
          b++;
        }
        Decl d = parse_decl(s.substr(p, b - p));
        p = b + 1;
        Var v{d.name, sp, 0, d.size, ext, d.align};
        if (sp != SHARED) {
          v.addr = heap_alloc(std::max<uint64_t>(d.size, 1), 1);
          m->allocs.push_back({v.addr, d.size});
          memset((void *)v.addr, 0, d.size);
          inits.push_back({d.name, d.init, d.ty});
        }
        m->vars[d.name] = v;
        continue;
      }
      throw std::runtime_error("unexpected text in PTX: " + head.substr(0, 80));
    }
    for (auto &in : inits) {
      if (in.text.empty()) continue;
      std::string t = in.text;
      if (t[0] == '{') {
        std::string u;
        for (char ch : t)
          if (ch != '{' && ch != '}') u += ch;
        t = u;
      }
      uint8_t *dst = (uint8_t *)m->vars[in.name].addr;
      int sz = ty_size(in.ty);
      uint64_t left = m->vars[in.name].size;
      for (auto &x : split(t, ',')) {
        if (x.empty() || left < (uint64_t)sz) break;
        uint64_t v;
        if (!parse_imm(x, v)) {
          std::string y = x;
          bool gen = false;
          int64_t off = 0;
          int shift = 0;
          size_t mk = y.find("0xFF");
          if (mk == 0) {
            shift = -1;
            size_t a = y.find('('), b = y.rfind(')');
            std::string msk = y.substr(0, a);
            uint64_t mv = strtoull(msk.c_str(), nullptr, 16);
            shift = mv ? __builtin_ctzll(mv) : 0;
            y = y.substr(a + 1, b - a - 1);
          }
          if (y.compare(0, 8, "generic(") == 0) {
            gen = true;
            y = y.substr(8, y.rfind(')') - 8);
          }
          (void)gen;
          size_t pl = y.find('+');
          if (pl != std::string::npos) {
            off = strtoll(y.c_str() + pl + 1, nullptr, 0);
            y = trim(y.substr(0, pl));
          }
          auto it = m->vars.find(y);
          if (it == m->vars.end()) throw std::runtime_error("initialiser refers to " + x);
          v = it->second.addr + off;
          if (shift > 0) v >>= shift;
        }
        memcpy(dst, &v, sz);
        dst += sz;
        left -= sz;
      }
    }
  } catch (std::exception &e) {
    err = e.what();
    for (auto &a : m->allocs) heap_free(a.first);
    return nullptr;
  }
  return m.release();
}
void module_free(Module *m) {
  if (!m) return;
  for (auto &a : m->allocs) heap_free(a.first);
  delete m;
}

// ---------------------------------------------------------------- kernel builder
enum {
  SP_TIDX,
  SP_TIDY,
  SP_TIDZ,
  SP_NTX,
  SP_NTY,
  SP_NTZ,
  SP_CTX,
  SP_CTY,
  SP_CTZ,
  SP_NCX,
  SP_NCY,
  SP_NCZ,
  SP_LANE,
  SP_WARPID,
  SP_NWARP,
  SP_SMID,
  SP_NSMID,
  SP_GRIDID,
  SP_LMEQ,
  SP_LMLE,
  SP_LMLT,
  SP_LMGE,
  SP_LMGT,
  SP_DYN,
  SP_TOTSM
};

struct Scope {
  std::map<std::string, int> regs;
  std::map<std::string, Ty> types;
  std::map<std::string, std::pair<Space, int64_t>> vars;
};
struct Builder {
  Module &m;
  Kernel &k;
  int depth = 0;
  int uid = 0;
  std::map<uint64_t, int> constmap;
  std::map<int, int> specialmap;
  std::map<uint32_t, int> parammap;
  std::map<std::string, int64_t> sharedoff;
  std::vector<Scope> scopes;
  int carry = -1;
  bool need_dyn_align = false;
  uint32_t dyn_align = 16;
  std::vector<std::pair<int, std::string>> fix;
  std::map<std::string, int> labels;
  std::map<std::string, std::vector<std::string>> tables;
  std::vector<std::pair<int, std::string>> fixtab;
  std::string prefix;  // label prefix of the inlined copy
  std::vector<std::string> stack;
  Builder(Module &mm, Kernel &kk) : m(mm), k(kk) {}
  int slot() { return k.nslots++; }
  int cst(uint64_t v) {
    auto it = constmap.find(v);
    if (it != constmap.end()) return it->second;
    int s = slot();
    constmap[v] = s;
    k.consts.push_back({s, v});
    return s;
  }
  int special(int id) {
    auto it = specialmap.find(id);
    if (it != specialmap.end()) return it->second;
    int s = slot();
    specialmap[id] = s;
    k.specials.push_back({s, id});
    return s;
  }
  int paramslot(uint32_t off) {
    auto it = parammap.find(off);
    if (it != parammap.end()) return it->second;
    int s = slot();
    parammap[off] = s;
    k.param_consts.push_back({s, off});
    return s;
  }
  [[noreturn]] void fail(const std::string &w) { throw std::runtime_error(w); }
  int find_reg(const std::string &n) {
    for (size_t i = scopes.size(); i-- > 0;) {
      auto it = scopes[i].regs.find(n);
      if (it != scopes[i].regs.end()) return it->second;
    }
    return -1;
  }
  bool find_var(const std::string &n, Space &sp, int64_t &off) {
    for (size_t i = scopes.size(); i-- > 0;) {
      auto it = scopes[i].vars.find(n);
      if (it != scopes[i].vars.end()) {
        sp = it->second.first;
        off = it->second.second;
        return true;
      }
    }
    auto so = sharedoff.find(n);
    if (so != sharedoff.end()) {
      sp = SHARED;
      off = so->second;
      return true;
    }
    auto it = m.vars.find(n);
    if (it == m.vars.end()) return false;
    if (it->second.space == SHARED) {
      if (it->second.ext && it->second.size == 0) {
        sp = SHARED;
        off = -1;
        return true;
      }
      off = alloc_shared(it->second.size, it->second.align);
      sharedoff[n] = off;
      sp = SHARED;
      return true;
    }
    sp = it->second.space;
    off = (int64_t)it->second.addr;
    return true;
  }
  int64_t alloc_shared(uint64_t size, uint32_t al) {
    if (!al) al = 1;
    k.shared_static = (k.shared_static + al - 1) / al * al;
    int64_t o = k.shared_static;
    k.shared_static += size;
    return o;
  }
  int64_t alloc_local(uint64_t size, uint32_t al) {
    if (al < 8) al = 8;
    k.local_size = (k.local_size + al - 1) / al * al;
    int64_t o = k.local_size;
    k.local_size += size;
    return o;
  }
  // operand to slot
  int operand(const std::string &t0) {
    std::string t = trim(t0);
    if (t == "_") return -1;
    if (t[0] == '%') {
      int r = find_reg(t);
      if (r >= 0) return r;
      static const std::map<std::string, int> sp = {{"%tid.x", SP_TIDX},           {"%tid.y", SP_TIDY},
                                                    {"%tid.z", SP_TIDZ},           {"%ntid.x", SP_NTX},
                                                    {"%ntid.y", SP_NTY},           {"%ntid.z", SP_NTZ},
                                                    {"%ctaid.x", SP_CTX},          {"%ctaid.y", SP_CTY},
                                                    {"%ctaid.z", SP_CTZ},          {"%nctaid.x", SP_NCX},
                                                    {"%nctaid.y", SP_NCY},         {"%nctaid.z", SP_NCZ},
                                                    {"%laneid", SP_LANE},          {"%warpid", SP_WARPID},
                                                    {"%nwarpid", SP_NWARP},        {"%smid", SP_SMID},
                                                    {"%nsmid", SP_NSMID},          {"%gridid", SP_GRIDID},
                                                    {"%lanemask_eq", SP_LMEQ},     {"%lanemask_le", SP_LMLE},
                                                    {"%lanemask_lt", SP_LMLT},     {"%lanemask_ge", SP_LMGE},
                                                    {"%lanemask_gt", SP_LMGT},     {"%dynamic_smem_size", SP_DYN},
                                                    {"%total_smem_size", SP_TOTSM}};
      auto it = sp.find(t);
      if (it != sp.end()) return special(it->second);
      fail("unknown register " + t);
    }
    if (t == "WARP_SZ") return cst(32);
    uint64_t v;
    if (parse_imm(t, v)) return cst(v);
    int r = find_reg(t);
    if (r >= 0) return r;
    // symbol, perhaps with an offset
    int64_t add = 0;
    std::string n = t;
    size_t pl = t.find('+');
    if (pl != std::string::npos) {
      add = strtoll(t.c_str() + pl + 1, nullptr, 0);
      n = trim(t.substr(0, pl));
    }
    Space sp;
    int64_t off;
    if (!find_var(n, sp, off)) {
      if (m.funcs.count(n)) return cst(0xF000000000000000ull);
      fail("unknown symbol " + n);
    }
    if (sp == PARAM) return paramslot((uint32_t)(off + add));
    if (sp == SHARED && off == -1) {
      int s = slot();
      k.dynsmem.push_back(s);
      if (add) fail("offset on dynamic shared memory");
      return s;
    }
    return cst((uint64_t)(off + add));
  }
  // address "[x+off]"
  void address(const std::string &t0, Ins &i, bool explicit_space) {
    std::string t = trim(t0);
    if (t.size() < 2 || t[0] != '[') fail("address expected: " + t);
    t = trim(t.substr(1, t.rfind(']') - 1));
    int64_t add = 0;
    size_t pl = t.find('+');
    std::string b = t;
    if (pl != std::string::npos) {
      add = strtoll(trim(t.substr(pl + 1)).c_str(), nullptr, 0);
      b = trim(t.substr(0, pl));
    } else {
      size_t mi = t.find('-', 1);
      if (mi != std::string::npos) {
        add = -strtoll(trim(t.substr(mi + 1)).c_str(), nullptr, 0);
        b = trim(t.substr(0, mi));
      }
    }
    i.imm = add;
    uint64_t v;
    if (find_reg(b) >= 0 || b[0] == '%') {
      i.s[0] = operand(b);
      return;
    }
    if (parse_imm(b, v)) {
      i.s[0] = cst(v);
      return;
    }
    Space sp;
    int64_t off;
    if (!find_var(b, sp, off)) fail("unknown symbol " + b);
    if (sp == LOCAL && i.space == PARAM) i.space = LOCAL;  // parameters of an inlined call live in local memory
    i.s[0] = operand(b);
  }
  Ins &emit(Ins i) {
    k.code.push_back(std::move(i));
    return k.code.back();
  }
  void label(const std::string &l) { labels[prefix + l] = (int)k.code.size(); }

  void body(const std::string &s) {
    size_t p = 0;
    scopes.emplace_back();
    size_t base_scopes = scopes.size();
    while (true) {
      while (p < s.size() && isspace((unsigned char)s[p])) p++;
      if (p >= s.size()) break;
      if (s[p] == '{') {
        scopes.emplace_back();
        p++;
        continue;
      }
      if (s[p] == '}') {
        if (scopes.size() > base_scopes) scopes.pop_back();
        p++;
        continue;
      }
      if (s[p] == ';') {
        p++;
        continue;
      }
      // label?
      size_t q = p;
      while (q < s.size() && (isalnum((unsigned char)s[q]) || s[q] == '_' || s[q] == '$' || s[q] == '.' || s[q] == '%'))
        q++;
      size_t q2 = q;
      while (q2 < s.size() && (s[q2] == ' ' || s[q2] == '\t')) q2++;
      if (q > p && q2 < s.size() && s[q2] == ':' && s[p] != '@' && (q2 + 1 >= s.size() || s[q2 + 1] != ':')) {
        std::string l = s.substr(p, q - p);
        p = q2 + 1;
        while (p < s.size() && isspace((unsigned char)s[p])) p++;
        if (s.compare(p, 14, ".branchtargets") == 0) {
          size_t e = s.find(';', p);
          tables[prefix + l] = split(s.substr(p + 14, e - p - 14), ',');
          p = e + 1;
          continue;
        }
        if (s.compare(p, 14, ".callprototype") == 0) {
          p = s.find(';', p) + 1;
          continue;
        }
        label(l);
        continue;
      }
      if (s.compare(p, 4, ".loc") == 0 && isspace((unsigned char)s[p + 4])) {
        size_t e = s.find('\n', p);
        p = e == std::string::npos ? s.size() : e;
        continue;
      }
      size_t e = p;
      while (e < s.size() && s[e] != ';') {
        if (s[e] == '"') {
          e++;
          while (e < s.size() && s[e] != '"') e++;
        }
        e++;
      }
      std::string st = trim(s.substr(p, e - p));
      p = e + 1;
      if (st[0] == '.') directive(st);
      else ins(st);
    }
    scopes.resize(base_scopes);
    scopes.pop_back();
  }
  void directive(const std::string &st0) {
    std::string st = st0;
    if (st.compare(0, 5, ".reg.") == 0) st = ".reg " + st.substr(4);
    auto w = words(st);
    if (w[0] == ".reg") {
      Ty ty = NOTY;
      size_t at = st.find(w[0]) + 4;
      std::string rest = trim(st.substr(at));
      auto ww = words(rest);
      size_t pos = 0;
      while (!ww.empty() && ww[0][0] == '.') {
        Ty t = ty_of(ww[0].substr(1));
        if (t != NOTY) ty = t;
        pos = rest.find(ww[0], pos) + ww[0].size();
        ww.erase(ww.begin());
      }
      for (auto &n : split(rest.substr(pos), ',')) {
        size_t lt = n.find('<');
        if (lt != std::string::npos) {
          int cnt = atoi(n.c_str() + lt + 1);
          std::string b = trim(n.substr(0, lt));
          for (int j = 0; j < cnt; j++) {
            std::string r = b + std::to_string(j);
            scopes.back().regs[r] = slot();
            scopes.back().types[r] = ty;
          }
        } else {
          scopes.back().regs[n] = slot();
          scopes.back().types[n] = ty;
        }
      }
      return;
    }
    if (w[0] == ".local" || w[0] == ".param") {
      Decl d = parse_decl(st);
      scopes.back().vars[d.name] = {LOCAL, alloc_local(d.size, d.align)};
      return;
    }
    if (w[0] == ".shared") {
      Decl d = parse_decl(st);
      scopes.back().vars[d.name] = {SHARED, alloc_shared(d.size, d.align)};
      return;
    }
    if (w[0] == ".extern" && st.find(".shared") != std::string::npos) {
      Decl d = parse_decl(st);
      scopes.back().vars[d.name] = {SHARED, -1};
      return;
    }
    if (w[0] == ".pragma" || w[0] == ".loc" || w[0] == ".maxnreg" || w[0] == ".minnctapersm") return;
    if (w[0] == ".global" || w[0] == ".const" || w[0] == ".static") fail("unsupported directive " + st);
  }
  static bool has(const std::vector<std::string> &v, const char *x) {
    return std::find(v.begin(), v.end(), x) != v.end();
  }
  static int cmpmode(const std::string &s) {
    static const std::map<std::string, int> m = {{"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},
                                                 {"ge", GE},   {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},
                                                 {"equ", EQU}, {"neu", NEU}, {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU},
                                                 {"geu", GEU}, {"num", NUM}, {"nan", NAN_}};
    auto it = m.find(s);
    return it == m.end() ? -1 : it->second;
  }
  std::vector<std::string> braces(const std::string &t) {
    std::string x = trim(t);
    if (x[0] == '{') return split(x.substr(1, x.rfind('}') - 1), ',');
    return {x};
  }
  void pdest(const std::string &t, Ins &i) {  // "d|p"
    auto v = split(t, '|');
    i.d[0] = operand(v[0]);
    if (v.size() > 1) i.d[1] = operand(v[1]);
  }
  int psrc(const std::string &t0, bool &neg) {
    std::string t = trim(t0);
    neg = false;
    if (t[0] == '!') {
      neg = true;
      t = trim(t.substr(1));
    }
    return operand(t);
  }

  void ins(const std::string &st0) {
    std::string st = st0;
    Ins i;
    i.text = st0.substr(0, 160);
    for (auto &ch : i.text)
      if (ch == '\n' || ch == '\t') ch = ' ';
    if (st[0] == '@') {
      size_t e = 1;
      while (e < st.size() && !isspace((unsigned char)st[e])) e++;
      std::string pr = st.substr(1, e - 1);
      if (pr[0] == '!') {
        i.pneg = true;
        pr = pr.substr(1);
      }
      i.pred = operand(pr);
      st = trim(st.substr(e));
    }
    size_t e = 0;
    while (e < st.size() && !isspace((unsigned char)st[e])) e++;
    std::string opc = st.substr(0, e), rest = trim(st.substr(e));
    auto mods = split(opc, '.');
    for (auto &x : mods) {
      size_t c2 = x.find("::");
      (void)c2;
    }
    std::string op = mods[0];
    mods.erase(mods.begin());
    auto a = split(rest, ',');
    std::vector<Ty> tys;
    for (auto &x : mods) {
      Ty t = ty_of(x);
      if (t != NOTY) tys.push_back(t);
    }
    Ty ty = tys.empty() ? NOTY : tys.back();
    i.ty = ty;
    i.ty2 = tys.size() > 1 ? tys[1] : ty;
    if (tys.size() > 1) i.ty = tys[0];
    for (auto &x : mods) {
      if (x == "rm") i.csr = (i.csr & ~3) | 1;
      else if (x == "rp") i.csr = (i.csr & ~3) | 2;
      else if (x == "rz") i.csr = (i.csr & ~3) | 3;
      else if (x == "ftz") i.csr |= 4;
      else if (x == "sat" || x == "satfinite") i.sat = true;
    }
    auto sp_of = [&]() {
      for (auto &x : mods) {
        std::string y = x.substr(0, x.find(':'));
        if (y == "global") return GLOBAL;
        if (y == "shared") return SHARED;
        if (y == "local") return LOCAL;
        if (y == "param") return PARAM;
        if (y == "const") return CONSTS;
      }
      return GENERIC;
    };
    auto d0s = [&](int n) {
      i.d[0] = operand(a.at(0));
      if (i.d[0] < 0) i.d[0] = slot();
      for (int j = 0; j < n; j++) i.s[j] = operand(a.at(1 + j));
    };
    bool isf = ty == F32X2 || ty == F16 || ty == BF16 || ty == F32 || ty == F64 || ty == F16X2 || ty == BF16X2;
    bool sgn = ty == S8 || ty == S16 || ty == S32 || ty == S64;
    auto need = [&](Fn f) {
      if (!f) fail("unsupported instruction: " + st0);
      i.fn = f;
    };
    auto getcarry = [&]() {
      if (carry < 0) carry = slot();
      return carry;
    };
    bool hi = has(mods, "hi"), wide = has(mods, "wide"), lo = has(mods, "lo");
    (void)lo;

    if (op == "mov") {
      if (a[0][0] == '{') {
        auto v = braces(a[0]);
        i.vec = v.size();
        i.sz = ty_size(ty) / v.size();
        if (ty == B128) fail("unsupported: " + st0);
        for (size_t j = 0; j < v.size(); j++) i.d[j] = operand(v[j]);
        i.s[0] = operand(a[1]);
        need(f_unpack);
      } else if (a[1][0] == '{') {
        auto v = braces(a[1]);
        i.vec = v.size();
        i.sz = ty_size(ty) / v.size();
        if (ty == B128) fail("unsupported: " + st0);
        i.d[0] = operand(a[0]);
        for (size_t j = 0; j < v.size(); j++) i.s[j] = operand(v[j]);
        need(f_pack);
      } else if (a[1].compare(0, 6, "%clock") == 0 || a[1] == "%globaltimer") {
        i.d[0] = operand(a[0]);
        i.sz = ty_size(ty);
        need(f_clock);
      } else {
        d0s(1);
        need(f_mov);
      }
      emit(i);
      return;
    }
    if (op == "ld" || op == "ldu") {
      i.space = sp_of();
      auto v = braces(a[0]);
      i.vec = v.size();
      for (size_t j = 0; j < v.size(); j++) i.d[j] = operand(v[j]);
      if (i.vec == 1 && i.d[0] < 0) i.d[0] = slot();
      address(a[1], i, true);
      i.ty = ty;
      switch (ty) {
        case U8:
        case B8: need(f_ld<uint8_t>); break;
        case S8: need(f_ld<int8_t>); break;
        case U16:
        case B16:
        case F16:
        case BF16: need(f_ld<uint16_t>); break;
        case S16: need(f_ld<int16_t>); break;
        case S32: need(f_ld<int32_t>); break;
        case U32:
        case B32:
        case F32:
        case F16X2: need(f_ld<uint32_t>); break;
        case U64:
        case B64:
        case S64:
        case F64: need(f_ld<uint64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "st") {
      i.space = sp_of();
      address(a[0], i, true);
      auto v = braces(a[1]);
      i.vec = v.size();
      for (size_t j = 0; j < v.size(); j++) i.s[1 + j] = operand(v[j]);
      i.ty = ty;
      switch (ty_size(ty)) {
        case 1: need(f_st<uint8_t>); break;
        case 2: need(f_st<uint16_t>); break;
        case 4: need(f_st<uint32_t>); break;
        case 8: need(f_st<uint64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "cvta") {
      i.space = sp_of();
      i.mode = has(mods, "to") ? 1 : 0;
      d0s(1);
      need(i.space == SHARED || i.space == LOCAL ? f_cvta : f_mov);
      emit(i);
      return;
    }
    if (op == "isspacep") {
      i.space = sp_of();
      d0s(1);
      need(f_isspacep);
      emit(i);
      return;
    }
    if (op == "cvt") {
      for (auto &x : mods) {
        if (x == "rni") i.mode = RNI;
        else if (x == "rzi") i.mode = RZI;
        else if (x == "rmi") i.mode = RMI;
        else if (x == "rpi") i.mode = RPI;
      }
      if (tys.size() < 2) fail("unsupported instruction: " + st0);
      i.ty = tys[0];
      i.ty2 = tys[1];
      if ((i.ty == F16X2 || i.ty == BF16X2) && a.size() == 3) {
        d0s(2);
        need(f_cvt2);
      } else {
        d0s(1);
        need(sel_cvt(i.ty, i.ty2));
      }
      emit(i);
      return;
    }
    if (op == "add" || op == "sub" || op == "addc" || op == "subc") {
      bool cc = has(mods, "cc"), usec = op.size() == 4;
      d0s(2);
      if (cc || usec) {
        i.s[7] = getcarry();
        i.mode = (usec ? 1 : 0) | (cc ? 2 : 0) | (op[0] == 's' ? 4 : 0);
        need(ty_size(ty) == 4 ? f_addc<uint32_t> : f_addc<uint64_t>);
        emit(i);
        return;
      }
      if (isf) need(op == "add" ? sel_fl2<OAdd>(ty) : sel_fl2<OSub>(ty));
      else if (i.sat && ty == S32) fail("unsupported instruction: " + st0);
      else need(op == "add" ? sel_uns<OAdd>(ty) : sel_uns<OSub>(ty));
      emit(i);
      sat_post(i, isf);
      return;
    }
    if (op == "mul") {
      d0s(2);
      if (isf) need(sel_fl2<OMul>(ty));
      else if (wide) {
        switch (ty) {
          case U16: need(f_mulwide<uint16_t, uint32_t>); break;
          case S16: need(f_mulwide<int16_t, int32_t>); break;
          case U32: need(f_mulwide<uint32_t, uint64_t>); break;
          case S32: need(f_mulwide<int32_t, int64_t>); break;
          default: need(nullptr);
        }
      } else if (hi) {
        switch (ty) {
          case U16: need(f_mulhi<uint16_t, uint32_t>); break;
          case S16: need(f_mulhi<int16_t, int32_t>); break;
          case U32: need(f_mulhi<uint32_t, uint64_t>); break;
          case S32: need(f_mulhi<int32_t, int64_t>); break;
          case U64: need(f_mulhi<uint64_t, u128>); break;
          case S64: need(f_mulhi<int64_t, __int128>); break;
          default: need(nullptr);
        }
      } else need(ty_size(ty) == 2 ? fun2<uint32_t, OMul> : sel_uns<OMul>(ty));
      emit(i);
      sat_post(i, isf);
      return;
    }
    if (op == "mad" || op == "fma" || op == "madc") {
      bool cc = has(mods, "cc");
      d0s(3);
      if (cc || op == "madc") {
        i.s[7] = getcarry();
        i.mode = (op == "madc" ? 1 : 0) | (cc ? 2 : 0);
        i.mode2 = hi;
        switch (ty) {
          case U32:
          case B32: need(f_madc<uint32_t, uint64_t>); break;
          case S32: need(f_madc<int32_t, int64_t>); break;
          case U64:
          case B64: need(f_madc<uint64_t, u128>); break;
          case S64: need(f_madc<int64_t, __int128>); break;
          default: need(nullptr);
        }
        emit(i);
        return;
      }
      if (isf) {
        if (has(mods, "relu")) fail("unsupported instruction: " + st0);
        need(sel_fl3<OFma>(ty));
      } else if (wide) {
        switch (ty) {
          case U16: need(f_madwide<uint16_t, uint32_t>); break;
          case S16: need(f_madwide<int16_t, int32_t>); break;
          case U32: need(f_madwide<uint32_t, uint64_t>); break;
          case S32: need(f_madwide<int32_t, int64_t>); break;
          default: need(nullptr);
        }
      } else if (hi) {
        switch (ty) {
          case U32: need(f_madhi<uint32_t, uint64_t>); break;
          case S32: need(f_madhi<int32_t, int64_t>); break;
          case U64: need(f_madhi<uint64_t, u128>); break;
          case S64: need(f_madhi<int64_t, __int128>); break;
          default: need(nullptr);
        }
      } else {
        switch (ty_size(ty)) {
          case 2: need(fun3<uint32_t, OMad>); break;
          case 4: need(fun3<uint32_t, OMad>); break;
          case 8: need(fun3<uint64_t, OMad>); break;
          default: need(nullptr);
        }
      }
      emit(i);
      sat_post(i, isf);
      return;
    }
    if (op == "mul24" || op == "mad24") {
      d0s(op[1] == 'u' ? 2 : 3);
      i.mode = hi;
      need(sgn ? f_mul24<int32_t> : f_mul24<uint32_t>);
      emit(i);
      return;
    }
    if (op == "div") {
      d0s(2);
      if (isf) need(sel_fd2<ODivF>(ty));
      else switch (ty) {
          case U16: need(fun2<uint16_t, ODivU>); break;
          case S16: need(fun2<int16_t, ODivS>); break;
          case U32: need(fun2<uint32_t, ODivU>); break;
          case S32: need(fun2<int32_t, ODivS>); break;
          case U64: need(fun2<uint64_t, ODivU>); break;
          case S64: need(fun2<int64_t, ODivS>); break;
          default: need(nullptr);
        }
      emit(i);
      return;
    }
    if (op == "rem") {
      d0s(2);
      switch (ty) {
        case U16: need(fun2<uint16_t, ORemU>); break;
        case S16: need(fun2<int16_t, ORemS>); break;
        case U32: need(fun2<uint32_t, ORemU>); break;
        case S32: need(fun2<int32_t, ORemS>); break;
        case U64: need(fun2<uint64_t, ORemU>); break;
        case S64: need(fun2<int64_t, ORemS>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "min" || op == "max") {
      bool mn = op == "min";
      d0s(2);
      if (has(mods, "relu") || has(mods, "xorsign") || has(mods, "abs")) fail("unsupported instruction: " + st0);
      if (isf) {
        if (has(mods, "NaN")) need(mn ? sel_fl2<OMinN>(ty) : sel_fl2<OMaxN>(ty));
        else need(mn ? sel_fl2<OMinF>(ty) : sel_fl2<OMaxF>(ty));
      } else need(mn ? sel_int<OMinI>(ty) : sel_int<OMaxI>(ty));
      if (a.size() > 3) {
        Ins j = i;
        int t1 = slot();
        i.d[0] = t1;
        emit(i);
        j.s[0] = t1;
        j.s[1] = operand(a[3]);
        emit(j);
        return;
      }
      emit(i);
      return;
    }
    if (op == "abs") {
      d0s(1);
      if (isf) need(sel_fl1<OAbsF>(ty));
      else switch (ty) {
          case S16: need(fun1<int16_t, OAbsI>); break;
          case S32: need(fun1<int32_t, OAbsI>); break;
          case S64: need(fun1<int64_t, OAbsI>); break;
          default: need(nullptr);
        }
      emit(i);
      return;
    }
    if (op == "neg") {
      d0s(1);
      if (isf) need(sel_fl1<ONeg>(ty));
      else need(sel_uns1<ONeg>(ty));
      emit(i);
      return;
    }
    if (op == "and" || op == "or" || op == "xor") {
      d0s(2);
      need(op == "and" ? sel_uns<OAnd>(ty) : op == "or" ? sel_uns<OOr>(ty) : sel_uns<OXor>(ty));
      emit(i);
      return;
    }
    if (op == "not") {
      bool ng;
      i.d[0] = operand(a[0]);
      i.s[0] = psrc(a[1], ng);
      if (ty == PRED) {
        i.s[1] = cst(1);
        need(fun2<uint8_t, OXor>);
      } else need(sel_uns1<ONot>(ty));
      emit(i);
      return;
    }
    if (op == "cnot") {
      d0s(1);
      need(sel_uns1<OCNot>(ty));
      emit(i);
      return;
    }
    if (op == "shl") {
      d0s(2);
      switch (ty_size(ty)) {
        case 2: need(f_shl<uint16_t>); break;
        case 4: need(f_shl<uint32_t>); break;
        case 8: need(f_shl<uint64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "shr") {
      d0s(2);
      switch (ty) {
        case U16:
        case B16: need(f_shr<uint16_t>); break;
        case S16: need(f_shr<int16_t>); break;
        case U32:
        case B32: need(f_shr<uint32_t>); break;
        case S32: need(f_shr<int32_t>); break;
        case U64:
        case B64: need(f_shr<uint64_t>); break;
        case S64: need(f_shr<int64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "shf") {
      d0s(3);
      i.mode = (has(mods, "r") ? 1 : 0) | (has(mods, "wrap") ? 2 : 0);
      need(f_shf);
      emit(i);
      return;
    }
    if (op == "bfe") {
      d0s(3);
      switch (ty) {
        case U32: need(f_bfe<uint32_t>); break;
        case S32: need(f_bfe<int32_t>); break;
        case U64: need(f_bfe<uint64_t>); break;
        case S64: need(f_bfe<int64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "bfi") {
      d0s(4);
      need(ty_size(ty) == 4 ? f_bfi<uint32_t> : f_bfi<uint64_t>);
      emit(i);
      return;
    }
    if (op == "bfind") {
      d0s(1);
      i.mode = has(mods, "shiftamt");
      switch (ty) {
        case U32: need(f_bfind<uint32_t>); break;
        case S32: need(f_bfind<int32_t>); break;
        case U64: need(f_bfind<uint64_t>); break;
        case S64: need(f_bfind<int64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "brev") {
      d0s(1);
      need(ty_size(ty) == 4 ? f_brev<uint32_t> : f_brev<uint64_t>);
      emit(i);
      return;
    }
    if (op == "popc") {
      d0s(1);
      need(ty_size(ty) == 4 ? f_popc<uint32_t> : f_popc<uint64_t>);
      emit(i);
      return;
    }
    if (op == "clz") {
      d0s(1);
      need(ty_size(ty) == 4 ? f_clz<uint32_t> : f_clz<uint64_t>);
      emit(i);
      return;
    }
    if (op == "prmt") {
      static const char *nm[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
      for (int j = 1; j < 7; j++)
        if (has(mods, nm[j])) i.mode = j;
      d0s(3);
      need(f_prmt);
      emit(i);
      return;
    }
    if (op == "lop3") {
      d0s(3);
      uint64_t v;
      if (a.size() != 5 || !parse_imm(a[4], v)) fail("unsupported instruction: " + st0);
      i.imm = v;
      need(f_lop3);
      emit(i);
      return;
    }
    if (op == "sad") {
      d0s(3);
      switch (ty) {
        case U32: need(f_sad<uint32_t>); break;
        case S32: need(f_sad<int32_t>); break;
        case U64: need(f_sad<uint64_t>); break;
        case S64: need(f_sad<int64_t>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "dp4a") {
      d0s(3);
      i.mode = (tys[0] == S32 ? 1 : 0) | (tys[1] == S32 ? 2 : 0);
      need(f_dp4a);
      emit(i);
      return;
    }
    if (op == "setp") {
      int cm = cmpmode(mods[0]);
      if (cm < 0) fail("unsupported instruction: " + st0);
      pdest(a[0], i);
      i.s[0] = operand(a[1]);
      i.s[1] = operand(a[2]);
      i.mode = cm;
      if (has(mods, "and")) i.mode2 = 1;
      else if (has(mods, "or")) i.mode2 = 2;
      else if (has(mods, "xor")) i.mode2 = 3;
      if (i.mode2) i.s[2] = psrc(a.at(3), i.sneg);
      switch (ty) {
        case U16:
        case B16: need(sel_cmp<uint16_t, false>(cm)); break;
        case S16: need(sel_cmp<int16_t, false>(cm)); break;
        case U32:
        case B32: need(sel_cmp<uint32_t, false>(cm)); break;
        case S32: need(sel_cmp<int32_t, false>(cm)); break;
        case U64:
        case B64: need(sel_cmp<uint64_t, false>(cm)); break;
        case S64: need(sel_cmp<int64_t, false>(cm)); break;
        case F32: need(sel_cmp<float, true>(cm)); break;
        case F64: need(sel_cmp<double, true>(cm)); break;
        case F16: need(sel_cmp<h16, true>(cm)); break;
        case BF16: need(sel_cmp<b16f, true>(cm)); break;
        case F16X2: need(i.mode2 ? nullptr : f_setp_x2<h16>); break;
        case BF16X2: need(i.mode2 ? nullptr : f_setp_x2<b16f>); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "set") {
      int cm = cmpmode(mods[0]);
      if (cm < 0 || tys.size() < 2) fail("unsupported instruction: " + st0);
      i.mode = cm;
      i.ty = tys[0];
      i.ty2 = tys[1];
      d0s(2);
      if (has(mods, "and")) i.mode2 = 1;
      else if (has(mods, "or")) i.mode2 = 2;
      else if (has(mods, "xor")) i.mode2 = 3;
      if (i.mode2) i.s[2] = psrc(a.at(3), i.sneg);
      need(f_set);
      emit(i);
      return;
    }
    if (op == "selp") {
      i.d[0] = operand(a[0]);
      i.s[0] = operand(a[1]);
      i.s[1] = operand(a[2]);
      i.s[2] = psrc(a[3], i.sneg);
      need(f_selp);
      emit(i);
      return;
    }
    if (op == "slct") {
      i.ty2 = tys.back();
      d0s(3);
      need(f_slct);
      emit(i);
      return;
    }
    if (op == "testp") {
      static const char *nm[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
      for (int j = 0; j < 6; j++)
        if (has(mods, nm[j])) i.mode = j;
      d0s(1);
      need(f_testp);
      emit(i);
      return;
    }
    if (op == "copysign") {
      d0s(2);
      need(sel_fd2<OCopysign>(ty));
      emit(i);
      return;
    }
    if (op == "rcp") {
      d0s(1);
      need(sel_fd1<ORcp>(ty));
      emit(i);
      return;
    }
    if (op == "sqrt") {
      d0s(1);
      need(sel_fd1<OSqrt>(ty));
      emit(i);
      return;
    }
    if (op == "rsqrt") {
      d0s(1);
      need(sel_fd1<ORsqrt>(ty));
      emit(i);
      return;
    }
    if (op == "sin") {
      d0s(1);
      need(fun1<float, OSin>);
      emit(i);
      return;
    }
    if (op == "cos") {
      d0s(1);
      need(fun1<float, OCos>);
      emit(i);
      return;
    }
    if (op == "ex2") {
      d0s(1);
      need(sel_fl1<OEx2>(ty));
      emit(i);
      return;
    }
    if (op == "lg2") {
      d0s(1);
      need(sel_fl1<OLg2>(ty));
      emit(i);
      return;
    }
    if (op == "tanh") {
      d0s(1);
      need(sel_fl1<OTanh>(ty));
      emit(i);
      return;
    }
    if (op == "membar" || op == "fence" || op == "prefetch" || op == "prefetchu" || op == "nanosleep" ||
        op == "applypriority" || op == "discard" || op == "griddepcontrol" || op == "pmevent") {
      return;
    }
    if (op == "trap" || op == "brkpt") {
      i.kind = NORMAL;
      need(f_trap);
      emit(i);
      return;
    }
    if (op == "atom" || op == "red") {
      bool at = op == "atom";
      int o = at ? 1 : 0;
      i.space = sp_of();
      if (at) i.d[0] = operand(a[0]);
      address(a[o], i, true);
      i.s[1] = operand(a[o + 1]);
      if ((int)a.size() > o + 2) i.s[2] = operand(a[o + 2]);
      i.ty = ty;
      static const char *nm[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};
      int md = -1;
      for (int j = 0; j < 10; j++)
        if (has(mods, nm[j])) md = j;
      if (md < 0) fail("unsupported instruction: " + st0);
      i.mode = md;
      switch (ty) {
        case U32:
        case B32: need(f_atom<uint32_t, true>); break;
        case S32: need(f_atom<int32_t, true>); break;
        case U64:
        case B64: need(f_atom<uint64_t, true>); break;
        case S64: need(f_atom<int64_t, true>); break;
        case F32: need(f_atom<float, false>); break;
        case F64: need(f_atom<double, false>); break;
        case F16: need(f_atom<h16, false>); break;
        case BF16: need(f_atom<b16f, false>); break;
        case B16:
        case U16: need(f_atom<uint16_t, true>); break;
        case F16X2: need(md == A_ADD ? f_atomx2<h16> : nullptr); break;
        case BF16X2: need(md == A_ADD ? f_atomx2<b16f> : nullptr); break;
        default: need(nullptr);
      }
      emit(i);
      return;
    }
    if (op == "shfl") {
      i.kind = WARP;
      i.mode = W_SHFL;
      i.mode2 = has(mods, "up") ? 0 : has(mods, "down") ? 1 : has(mods, "bfly") ? 2 : 3;
      pdest(a[0], i);
      i.s[0] = operand(a[1]);
      i.s[1] = operand(a[2]);
      i.s[2] = operand(a[3]);
      i.tgt = a.size() > 4 ? operand(a[4]) : -1;
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "vote") {
      i.kind = WARP;
      i.mode = W_VOTE;
      i.mode2 = has(mods, "all") ? 0 : has(mods, "any") ? 1 : has(mods, "uni") ? 2 : 3;
      i.d[0] = operand(a[0]);
      i.s[0] = psrc(a[1], i.sneg);
      i.s[1] = a.size() > 2 ? operand(a[2]) : -1;
      i.tgt = i.s[1];
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "activemask") {
      i.kind = WARP;
      i.mode = W_ACTIVE;
      i.d[0] = operand(a[0]);
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "elect") {
      i.kind = WARP;
      i.mode = W_ELECT;
      pdest(a[0], i);
      i.tgt = operand(a[1]);
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "match") {
      i.kind = WARP;
      i.mode = W_MATCH;
      i.mode2 = has(mods, "all");
      pdest(a[0], i);
      i.s[0] = operand(a[1]);
      i.s[1] = operand(a[2]);
      i.tgt = i.s[1];
      i.sz = ty_size(ty);
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "redux") {
      i.kind = WARP;
      i.mode = W_REDUX;
      static const char *nm[] = {"add", "min", "max", "and", "or", "xor"};
      for (int j = 0; j < 6; j++)
        if (has(mods, nm[j])) i.mode2 = j;
      i.d[0] = operand(a[0]);
      i.s[0] = operand(a[1]);
      i.s[1] = operand(a[2]);
      i.tgt = i.s[1];
      need(f_warp);
      emit(i);
      return;
    }
    if (op == "bar" || op == "barrier") {
      if (has(mods, "warp")) {
        i.kind = WARP;
        i.mode = W_SYNC;
        i.tgt = operand(a[0]);
        need(f_warp);
        emit(i);
        return;
      }
      if (has(mods, "cluster") || has(mods, "arrive")) fail("unsupported instruction: " + st0);
      i.kind = BAR;
      if (has(mods, "red")) {
        i.mode = has(mods, "popc") ? 1 : has(mods, "and") ? 2 : 3;
        i.d[0] = operand(a[0]);
        i.s[0] = operand(a[1]);
        i.s[2] = psrc(a.back(), i.sneg);
        i.s[1] = a.size() > 3 ? operand(a[2]) : -1;
      } else {
        i.s[0] = operand(a[0]);
        i.s[1] = a.size() > 1 ? operand(a[1]) : -1;
      }
      emit(i);
      return;
    }
    if (op == "bra") {
      i.kind = BRA;
      int at = k.code.size();
      emit(i);
      fix.push_back({at, prefix + a[0]});
      return;
    }
    if (op == "brx") {
      i.kind = BRX;
      i.s[0] = operand(a[0]);
      int at = k.code.size();
      emit(i);
      fixtab.push_back({at, prefix + a[1]});
      return;
    }
    if (op == "exit") {
      i.kind = EXITK;
      emit(i);
      return;
    }
    if (op == "ret") {
      if (depth == 0) i.kind = EXITK;
      else {
        i.kind = BRA;
        int at = k.code.size();
        emit(i);
        fix.push_back({at, prefix + "$ret"});
        return;
      }
      emit(i);
      return;
    }
    if (op == "call") {
      call(a, i, st0);
      return;
    }
    fail("unsupported instruction: " + st0);
  }
  void sat_post(const Ins &i, bool isf) {
    if (!i.sat || !isf) return;
    Ins j;
    j.fn = f_satf;
    j.ty = i.ty2 == NOTY ? i.ty : i.ty2;
    j.d[0] = i.d[0];
    j.pred = i.pred;
    j.pneg = i.pneg;
    j.text = i.text;
    emit(j);
  }

  void call(std::vector<std::string> a, const Ins &proto, const std::string &st) {
    // forms: (ret), name, (args) | name, (args) | (ret), name | name
    std::vector<std::string> rets, args;
    std::string name;
    size_t j = 0;
    auto list = [&](const std::string &x) { return split(x.substr(1, x.rfind(')') - 1), ','); };
    if (j < a.size() && a[j][0] == '(') rets = list(a[j++]);
    name = a.at(j++);
    if (j < a.size() && a[j][0] == '(') args = list(a[j++]);
    auto f = m.funcs.find(name);
    auto argslot = [&](const std::string &p, Ty ty) {
      Space sp;
      int64_t off;
      if (!find_var(p, sp, off)) fail("call argument " + p);
      Ins l;
      l.space = LOCAL;
      l.fn = ty_size(ty) == 8 ? f_ld<uint64_t> : f_ld<uint32_t>;
      l.s[0] = cst(off);
      l.d[0] = slot();
      l.text = "call argument";
      l.pred = proto.pred;
      l.pneg = proto.pneg;
      emit(l);
      return l.d[0];
    };
    if (name == "vprintf") {
      Ins p = proto;
      p.s[0] = argslot(args[0], B64);
      p.s[1] = argslot(args[1], B64);
      p.fn = f_printf;
      emit(p);
      return;
    }
    if (name == "__assertfail" || name == "__assert_fail") {
      Ins p = proto;
      p.fn = f_assertfail;
      emit(p);
      return;
    }
    if (f == m.funcs.end() || f->second.body.empty()) fail("unsupported: call of " + name);
    if (depth > 24) fail("unsupported: recursion or deep call chain at " + name);
    std::string skip = prefix + "$skip" + std::to_string(uid++);
    if (proto.pred >= 0) {
      Ins b;
      b.kind = BRA;
      b.pred = proto.pred;
      b.pneg = !proto.pneg;
      b.text = "skip call";
      int at = k.code.size();
      emit(b);
      fix.push_back({at, skip});
    }
    std::vector<std::pair<Space, int64_t>> av;
    for (auto &x : args) {
      Space sp;
      int64_t off;
      if (!find_var(x, sp, off)) fail("call argument " + x);
      av.push_back({sp, off});
    }
    std::vector<std::pair<Space, int64_t>> rv;
    for (auto &x : rets) {
      Space sp;
      int64_t off;
      if (!find_var(x, sp, off)) fail("call result " + x);
      rv.push_back({sp, off});
    }
    auto saved = std::move(scopes);
    scopes.clear();
    scopes.emplace_back();
    std::string oldp = prefix;
    prefix = "f" + std::to_string(uid++) + ":";
    auto bindp = [&](const std::string &text, std::vector<std::pair<Space, int64_t>> &v) {
      size_t n = 0;
      for (auto &x : split(text, ',')) {
        if (x.empty()) continue;
        Decl d = parse_decl(x);
        if (n >= v.size()) fail("argument count of " + name);
        scopes.back().vars[d.name] = v[n++];
      }
    };
    bindp(f->second.params, av);
    bindp(f->second.rets, rv);
    depth++;
    body(f->second.body);
    depth--;
    label("$ret");
    prefix = oldp;
    scopes = std::move(saved);
    labels[skip] = (int)k.code.size();
    Ins z;
    z.fn = f_nop;
    z.text = "end of call";
    emit(z);
  }
  void finish() {
    Ins x;
    x.kind = EXITK;
    x.text = "end";
    emit(x);
    int n = k.code.size();
    auto at = [&](const std::string &l) {
      auto it = labels.find(l);
      if (it == labels.end()) fail("label " + l);
      return std::min(it->second, n - 1);
    };
    for (auto &f : fix) {
      int t = at(f.second);
      k.code[f.first].tgt = t;
      k.code[t].leader = true;
    }
    for (auto &f : fixtab) {
      auto it = tables.find(f.second);
      if (it == tables.end()) fail("branch table " + f.second);
      std::string pre = f.second.substr(0, f.second.find(':') == std::string::npos ? 0 : f.second.find(':') + 1);
      for (auto &l : it->second) {
        int t = at(pre + l);
        k.code[f.first].table.push_back(t);
        k.code[t].leader = true;
      }
    }
    for (int j = 0; j < n; j++)
      if (k.code[j].kind == WARP) k.code[j].leader = true;
      else if (k.code[j].kind == BRA || k.code[j].kind == BAR) {
        if (j + 1 < n) k.code[j + 1].leader = true;
      }
  }
};

Kernel *module_kernel(Module *m, const std::string &name, std::string &err) {
  auto it = m->kernels.find(name);
  if (it != m->kernels.end()) return it->second.get();
  auto f = m->funcs.find(name);
  if (f == m->funcs.end() || !f->second.entry) {
    err = "named symbol not found: " + name;
    return nullptr;
  }
  auto k = std::make_unique<Kernel>();
  k->name = name;
  if (f->second.maxntid) k->max_threads = f->second.maxntid;
  Builder b(*m, *k);
  try {
    b.scopes.emplace_back();
    uint32_t off = 0;
    for (auto &x : split(f->second.params, ',')) {
      if (x.empty()) continue;
      Decl d = parse_decl(x);
      off = (off + d.align - 1) / d.align * d.align;
      k->params.push_back({d.name, off, (uint32_t)d.size});
      b.scopes.back().vars[d.name] = {PARAM, off};
      off += d.size;
    }
    k->param_size = off;
    b.body(f->second.body);
    b.finish();
  } catch (std::exception &e) {
    k->error = e.what();
  }
  Kernel *r = k.get();
  m->kernels[name] = std::move(k);
  return r;
}

std::vector<std::string> module_entries(Module *m) {
  std::vector<std::string> o;
  for (auto &f : m->funcs)
    if (f.second.entry) o.push_back(f.first);
  return o;
}

// ---------------------------------------------------------------- execution
struct Group {
  uint32_t pc;
  std::vector<uint16_t> th;
  bool wait = false;
};
struct BarSt {
  std::vector<std::pair<uint16_t, uint32_t>> arr;
  int need = -1;
  const Ins *ins = nullptr;
};

struct Runner {
  Ctx c;
  const Kernel &k;
  std::vector<uint64_t> regs;
  std::vector<uint8_t> shm, loc, par;
  std::vector<uint16_t> scratch, scratch2;
  uint32_t live = 0;
  std::vector<Group> groups;
  std::map<uint64_t, BarSt> bars;
  uint64_t count = 0;
  Runner(const Kernel &kk) : k(kk) {}
  void call(const Ins &i) {
    count += c.dense ? c.n : c.na;
    if (__builtin_expect(i.csr != 0, 0)) {
      unsigned old = _mm_getcsr();
      unsigned rc = i.csr & 3;
      _mm_setcsr((old & ~0xE040u) | (rc << 13) | ((i.csr & 4) ? 0x8040 : 0));
      i.fn(c, i);
      _mm_setcsr(old);
    } else i.fn(c, i);
  }
  void set_active(const std::vector<uint16_t> &v) {
    c.act = v.data();
    c.na = v.size();
    c.dense = v.size() == c.n;
  }
  void block() {
    groups.clear();
    bars.clear();
    live = c.n;
    std::fill(c.livemask.begin(), c.livemask.end(), 0);
    for (uint32_t t = 0; t < c.n; t++) c.livemask[t >> 5] |= 1u << (t & 31);
    Group g;
    g.pc = 0;
    g.th.resize(c.n);
    for (uint32_t t = 0; t < c.n; t++) g.th[t] = t;
    groups.push_back(std::move(g));
    Group cur;
    while (true) {
      // choose the runnable group with the lowest pc
      int best = -1;
      for (size_t j = 0; j < groups.size(); j++)
        if (!groups[j].wait && (best < 0 || groups[j].pc < groups[best].pc)) best = j;
      if (best < 0) {
        if (live == 0) return;
        if (!release()) deadlock();
        continue;
      }
      cur = std::move(groups[best]);
      groups.erase(groups.begin() + best);
      cur.wait = false;
      merge(cur);
      spin();
      run(cur);
    }
  }
  void merge(Group &cur) {
    bool any = false;
    for (size_t j = 0; j < groups.size();)
      if (groups[j].pc == cur.pc) {
        cur.th.insert(cur.th.end(), groups[j].th.begin(), groups[j].th.end());
        groups.erase(groups.begin() + j);
        any = true;
      } else j++;
    if (any) std::sort(cur.th.begin(), cur.th.end());
  }
  [[noreturn]] void deadlock() {
    std::string w;
    for (auto &g : groups) {
      w += " [" + std::to_string(g.th.size()) + " threads wait at: " + k.code[g.pc].text + "]";
    }
    for (auto &b : bars) w += " [" + std::to_string(b.second.arr.size()) + " at barrier]";
    throw Fault(719, "kernel " + k.name + ": threads can never meet:" + w);
  }
  bool release() {
    for (auto it = bars.begin(); it != bars.end(); ++it) {
      BarSt &b = it->second;
      size_t want = b.need >= 0 ? (size_t)b.need : live;
      if (b.arr.size() < want) continue;
      if (b.ins && b.ins->mode) {
        uint32_t pop = 0;
        for (auto &a : b.arr) pop += ((c.r(b.ins->s[2])[a.first] & 1) != 0) != b.ins->sneg;
        uint64_t v = b.ins->mode == 1 ? pop : b.ins->mode == 2 ? pop == b.arr.size() : pop > 0;
        for (auto &a : b.arr) c.r(k.code[a.second - 1].d[0])[a.first] = v;
      }
      std::map<uint32_t, std::vector<uint16_t>> by;
      for (auto &a : b.arr) by[a.second].push_back(a.first);
      for (auto &x : by) {
        std::sort(x.second.begin(), x.second.end());
        Group g;
        g.pc = x.first;
        g.th = std::move(x.second);
        groups.push_back(std::move(g));
      }
      bars.erase(it);
      return true;
    }
    return false;
  }
  void run(Group &cur) {
    uint32_t pc = cur.pc;
    set_active(cur.th);
    const Ins *code = k.code.data();
    for (;;) {
      const Ins &i = code[pc];
      if (i.leader && !groups.empty()) {
        bool stop = false;
        for (auto &g : groups)
          if (g.pc == pc || (g.pc < pc && !g.wait)) {
            stop = true;
            break;
          }
        if (stop) {
          if (std::any_of(groups.begin(), groups.end(), [&](const Group &g) { return g.pc < pc && !g.wait; })) {
            cur.pc = pc;
            groups.push_back(std::move(cur));
            return;
          }
          cur.pc = pc;
          merge(cur);
          set_active(cur.th);
        }
      }
      switch (i.kind) {
        case NORMAL:
          if (i.pred < 0) call(i);
          else {
            const uint64_t *P = c.r(i.pred);
            scratch.clear();
            for (uint16_t t : cur.th)
              if (((P[t] & 1) != 0) != i.pneg) scratch.push_back(t);
            if (!scratch.empty()) {
              set_active(scratch);
              call(i);
              set_active(cur.th);
            }
          }
          pc++;
          break;
        case BRA:
          if (i.pred < 0) {
            if ((uint32_t)i.tgt <= pc) spin();
            pc = i.tgt;
            break;
          } else {
            const uint64_t *P = c.r(i.pred);
            scratch.clear();
            scratch2.clear();
            for (uint16_t t : cur.th) (((P[t] & 1) != 0) != i.pneg ? scratch : scratch2).push_back(t);
            if (scratch2.empty()) {
              if ((uint32_t)i.tgt <= pc) spin();
              pc = i.tgt;
              break;
            }
            if (scratch.empty()) {
              pc++;
              break;
            }
            Group a;
            a.pc = i.tgt;
            a.th = scratch;
            groups.push_back(std::move(a));
            Group b;
            b.pc = pc + 1;
            b.th = scratch2;
            groups.push_back(std::move(b));
            return;
          }
        case BRX: {
          const uint64_t *S = c.r(i.s[0]);
          std::map<uint32_t, std::vector<uint16_t>> by;
          const std::vector<uint16_t> *src = &cur.th;
          for (uint16_t t : *src) {
            if (i.pred >= 0 && ((c.r(i.pred)[t] & 1) != 0) == i.pneg) {
              by[pc + 1].push_back(t);
              continue;
            }
            uint32_t x = (uint32_t)S[t];
            if (x >= i.table.size()) throw Fault(719, "kernel " + k.name + ": branch table index out of range");
            by[i.table[x]].push_back(t);
          }
          for (auto &x : by) {
            Group g;
            g.pc = x.first;
            g.th = std::move(x.second);
            groups.push_back(std::move(g));
          }
          return;
        }
        case EXITK: {
          auto kill = [&](const std::vector<uint16_t> &v) {
            for (uint16_t t : v) c.livemask[t >> 5] &= ~(1u << (t & 31));
            live -= v.size();
          };
          if (i.pred < 0) {
            kill(cur.th);
            return;
          }
          const uint64_t *P = c.r(i.pred);
          scratch.clear();
          scratch2.clear();
          for (uint16_t t : cur.th) (((P[t] & 1) != 0) != i.pneg ? scratch : scratch2).push_back(t);
          kill(scratch);
          if (scratch2.empty()) return;
          cur.th = scratch2;
          set_active(cur.th);
          pc++;
          break;
        }
        case BAR: {
          uint64_t id = c.r(i.s[0])[cur.th[0]];
          BarSt &b = bars[id];
          if (i.s[1] >= 0) b.need = (int)c.r(i.s[1])[cur.th[0]];
          b.ins = &i;
          std::vector<uint16_t> stay;
          for (uint16_t t : cur.th) {
            if (i.pred >= 0 && ((c.r(i.pred)[t] & 1) != 0) == i.pneg) {
              stay.push_back(t);
              continue;
            }
            b.arr.push_back({t, pc + 1});
          }
          if (b.need >= 0 && b.arr.size() >= (size_t)b.need) {
            BarSt tmp;
            (void)tmp;
            release();
          }
          if (stay.empty()) return;
          cur.th = stay;
          set_active(cur.th);
          pc++;
          break;
        }
        case WARP: {
          std::vector<uint16_t> *src = &cur.th;
          std::vector<uint16_t> sel, rest;
          if (i.pred >= 0) {
            const uint64_t *P = c.r(i.pred);
            for (uint16_t t : cur.th) (((P[t] & 1) != 0) != i.pneg ? sel : rest).push_back(t);
            if (sel.empty()) {
              pc++;
              break;
            }
            src = &sel;
          }
          if (i.tgt >= 0) {
            uint32_t nw = (c.n + 31) / 32;
            std::vector<uint32_t> gm(nw, 0), want(nw, 0);
            const uint64_t *M = c.r(i.tgt);
            for (uint16_t t : *src) {
              gm[t >> 5] |= 1u << (t & 31);
              want[t >> 5] |= (uint32_t)M[t];
            }
            std::vector<uint16_t> ok, no;
            for (uint16_t t : *src) ((want[t >> 5] & c.livemask[t >> 5] & ~gm[t >> 5]) == 0 ? ok : no).push_back(t);
            if (!no.empty()) {
              Group w;
              w.pc = pc;
              w.th = no;
              w.wait = true;
              groups.push_back(std::move(w));
              if (!ok.empty()) {
                set_active(ok);
                call(i);
                ok.insert(ok.end(), rest.begin(), rest.end());
                std::sort(ok.begin(), ok.end());
                Group g;
                g.pc = pc + 1;
                g.th = ok;
                groups.push_back(std::move(g));
              } else if (!rest.empty()) {
                Group g;
                g.pc = pc + 1;
                g.th = rest;
                groups.push_back(std::move(g));
              }
              return;
            }
          }
          set_active(*src);
          call(i);
          set_active(cur.th);
          pc++;
          break;
        }
        default: pc++;
      }
    }
  }
  void spin() {
    static const uint64_t lim =
        getenv("CUDASIM_MAX_INS") ? strtoull(getenv("CUDASIM_MAX_INS"), nullptr, 0) : 20000000000ull;
    if (count > lim)
      throw Fault(702, "kernel " + k.name + ": stopped after " + std::to_string(count) +
                           " thread-instructions (CUDASIM_MAX_INS)");
  }
  int go(const uint32_t grid[3], const uint32_t block_[3], uint32_t dyn, const uint8_t *params) {
    c.k = &k;
    for (int j = 0; j < 3; j++) c.grid[j] = grid[j], c.block[j] = block_[j];
    c.n = block_[0] * block_[1] * block_[2];
    c.N = (c.n + 31) & ~31u;
    c.dyn = dyn;
    regs.assign((size_t)k.nslots * c.N, 0);
    c.R = regs.data();
    uint32_t st = (k.shared_static + 15) & ~15u;
    shm.assign(st + dyn + 32, 0);
    c.shared = (uint8_t *)(((uint64_t)shm.data() + 15) & ~15ull);
    c.shared_size = st + dyn;
    c.local_size = (k.local_size + 15) & ~15u;
    if (c.local_size) {
      loc.assign(c.local_size * c.N + 16, 0);
      c.local = (uint8_t *)(((uint64_t)loc.data() + 15) & ~15ull);
    }
    par.assign(k.param_size + 32, 0);
    uint8_t *pb = (uint8_t *)(((uint64_t)par.data() + 15) & ~15ull);
    memcpy(pb, params, k.param_size);
    c.params = pb;
    c.param_size = k.param_size;
    c.livemask.assign((c.n + 31) / 32, 0);
    for (auto &x : k.consts) {
      uint64_t *r = c.r(x.first);
      for (uint32_t t = 0; t < c.N; t++) r[t] = x.second;
    }
    for (auto &x : k.param_consts) {
      uint64_t *r = c.r(x.first);
      for (uint32_t t = 0; t < c.N; t++) r[t] = (uint64_t)pb + x.second;
    }
    for (int s : k.dynsmem) {
      uint64_t *r = c.r(s);
      for (uint32_t t = 0; t < c.N; t++) r[t] = st;
    }
    std::vector<std::pair<int, int>> per;
    for (auto &x : k.specials) {
      uint64_t *r = c.r(x.first);
      if (x.second >= SP_CTX && x.second <= SP_CTZ) {
        per.push_back(x);
        continue;
      }
      for (uint32_t t = 0; t < c.N; t++) {
        uint32_t lane = t & 31;
        uint64_t v = 0;
        switch (x.second) {
          case SP_TIDX: v = t % block_[0]; break;
          case SP_TIDY: v = t / block_[0] % block_[1]; break;
          case SP_TIDZ: v = t / (block_[0] * block_[1]); break;
          case SP_NTX: v = block_[0]; break;
          case SP_NTY: v = block_[1]; break;
          case SP_NTZ: v = block_[2]; break;
          case SP_NCX: v = grid[0]; break;
          case SP_NCY: v = grid[1]; break;
          case SP_NCZ: v = grid[2]; break;
          case SP_LANE: v = lane; break;
          case SP_WARPID: v = t >> 5; break;
          case SP_NWARP: v = 32; break;
          case SP_NSMID: v = device_sms(); break;
          case SP_LMEQ: v = 1u << lane; break;
          case SP_LMLE: v = (uint32_t)((2ull << lane) - 1); break;
          case SP_LMLT: v = (1u << lane) - 1; break;
          case SP_LMGE: v = ~((1u << lane) - 1); break;
          case SP_LMGT: v = (uint32_t)~((2ull << lane) - 1); break;
          case SP_DYN: v = dyn; break;
          case SP_TOTSM: v = st + dyn; break;
          default: v = 0;
        }
        r[t] = v;
      }
    }
    for (uint32_t z = 0; z < grid[2]; z++)
      for (uint32_t y = 0; y < grid[1]; y++)
        for (uint32_t x = 0; x < grid[0]; x++) {
          c.cta[0] = x;
          c.cta[1] = y;
          c.cta[2] = z;
          for (auto &p : per) {
            uint64_t v = p.second == SP_CTX ? x : p.second == SP_CTY ? y : z;
            uint64_t *r = c.r(p.first);
            for (uint32_t t = 0; t < c.N; t++) r[t] = v;
          }
          memset(c.shared, 0xA5, c.shared_size);  // shared memory starts undefined on a real device
          block();
        }
    total_ins += count;
    return 0;
  }
};

int kernel_run(Kernel *k, const uint32_t grid[3], const uint32_t block[3], uint32_t dyn, const uint8_t *params,
               std::string &msg) {
  if (!k->error.empty()) {
    msg = "kernel " + k->name + ": " + k->error;
    return 801;
  }
  Runner r(*k);
  unsigned csr = _mm_getcsr();
  try {
    r.go(grid, block, dyn, params);
  } catch (Fault &f) {
    _mm_setcsr(csr);
    msg = f.what();
    total_ins += r.count;
    return f.code;
  } catch (std::exception &e) {
    _mm_setcsr(csr);
    msg = e.what();
    return 999;
  }
  _mm_setcsr(csr);
  return 0;
}
}  // namespace sim
