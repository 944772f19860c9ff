// Handlers that compare and choose.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <cmath>
#include <type_traits>

namespace sim {
namespace {

// C is a constant in the handlers of setp, the most frequent, and a variable in those of set.
template <class T>
inline bool compare(int c, T x, T y) {
  const bool unordered = !std::is_integral_v<T> && (x != x || y != y);
  switch (c) {
    case EQ: return !unordered && x == y;
    case NE: return !unordered && x != y;
    case LT: return !unordered && x < y;
    case LE: return !unordered && x <= y;
    case GT: return !unordered && x > y;
    case GE: return !unordered && x >= y;
    case EQU: return unordered || x == y;
    case NEU: return unordered || x != y;
    case LTU: return unordered || x < y;
    case LEU: return unordered || x <= y;
    case GTU: return unordered || x > y;
    case GEU: return unordered || x >= y;
    case NUM: return !unordered;
    case NAN_: return unordered;
    default: return false;
  }
}
inline bool combine(uint8_t how, bool result, bool with) {
  return how == WITH_AND ? result && with : how == WITH_OR ? result || with : how == WITH_XOR ? result != with : result;
}

template <class T, Comparison C>
void setp(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  uint64_t *d = b.reg_or_null(i.dst[0]), *inverse = b.reg_or_null(i.dst[1]);
  if (i.mode2 == ALONE && d && !inverse) {
    each(b, [=](uint32_t t) { d[t] = compare<T>(C, unpack<T>(x[t]), unpack<T>(y[t])); });
    return;
  }
  const uint64_t *p = b.reg_or_null(i.src[2]);
  each(b, [&](uint32_t t) {
    const bool result = compare<T>(C, unpack<T>(x[t]), unpack<T>(y[t]));
    const bool with = p && (p[t] & 1) != i.source_negated;
    if (d) d[t] = combine(i.mode2, result, with);
    if (inverse) inverse[t] = combine(i.mode2, !result, with);
  });
}
template <class H>
void setp_pair(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  uint64_t *low = b.reg_or_null(i.dst[0]), *high = b.reg_or_null(i.dst[1]);
  each(b, [&](uint32_t t) {
    const auto p = unpack<Pair<H>>(x[t]), q = unpack<Pair<H>>(y[t]);
    if (low) low[t] = compare<float>(i.mode, p.low, q.low);
    if (high) high[t] = compare<float>(i.mode, p.high, q.high);
  });
}
template <class T, Comparison... C>
Handler pick_setp(Comparison wanted) {
  Handler found = nullptr;
  ((wanted == C ? (found = setp<T, C>, 0) : 0), ...);
  return found;
}

uint64_t one_of(Type t) { return t == F32 ? 0x3f800000u : t == F16 ? 0x3c00u : t == BF16 ? 0x3f80u : 0xffffffffu; }
template <class T>
void set(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *p = b.reg_or_null(i.src[2]);
  const uint64_t one = one_of(i.type);
  each(b, [&](uint32_t t) {
    const bool result = compare<T>(i.mode, unpack<T>(x[t]), unpack<T>(y[t]));
    d[t] = combine(i.mode2, result, p && (p[t] & 1) != i.source_negated) ? one : 0;
  });
}
template <class H>
void set_pair(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]);
  const uint32_t one = i.type == F16X2 ? 0x3c00 : i.type == BF16X2 ? 0x3f80 : 0xffff;
  each(b, [&](uint32_t t) {
    const auto p = unpack<Pair<H>>(x[t]), q = unpack<Pair<H>>(y[t]);
    const bool low = compare<float>(i.mode, p.low, q.low), high = compare<float>(i.mode, p.high, q.high);
    d[t] = (low ? one : 0) | (high ? one << 16 : 0);
  });
}

void selp(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *p = b.reg(i.src[2]);
  const bool negated = i.source_negated;
  each(b, [=](uint32_t t) { d[t] = ((p[t] & 1) != negated) ? x[t] : y[t]; });
}
template <class T>
void slct(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *condition = b.reg(i.src[2]);
  each(b, [=](uint32_t t) { d[t] = unpack<T>(condition[t]) >= 0 ? x[t] : y[t]; });
}
template <class T>
bool test(TestMode mode, T x) {
  switch (mode) {
    case FINITE: return std::isfinite(x);
    case INFINITE: return std::isinf(x);
    case NUMBER: return !std::isnan(x);
    case NOT_A_NUMBER: return std::isnan(x);
    case NORMAL_NUMBER: return std::isnormal(x);
    default: return std::fpclassify(x) == FP_SUBNORMAL;
  }
}
template <class T>
void testp(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]);
  const auto mode = (TestMode)i.mode;
  each(b, [=](uint32_t t) { d[t] = test<T>(mode, unpack<T>(x[t])); });
}

}  // namespace

Handler setp_handler(Comparison c, Type t, Combination combination) {
  if (t == F16X2) return combination == ALONE ? setp_pair<Half> : nullptr;
  if (t == BF16X2) return combination == ALONE ? setp_pair<BFloat16> : nullptr;
  if (is_float(t))
    return for_float(t, [c](auto x) -> Handler {
      return pick_setp<decltype(x), EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_>(c);
    });
  return for_integer(t, [c](auto x) -> Handler { return pick_setp<decltype(x), EQ, NE, LT, LE, GT, GE>(c); });
}
Handler set_handler(Type source, Combination combination) {
  if (source == F16X2) return combination == ALONE ? set_pair<Half> : nullptr;
  if (source == BF16X2) return combination == ALONE ? set_pair<BFloat16> : nullptr;
  if (is_float(source)) return for_float(source, [](auto x) -> Handler { return set<decltype(x)>; });
  return for_integer(source, [](auto x) -> Handler { return set<decltype(x)>; });
}
Handler selp_handler() { return selp; }
Handler slct_handler(Type condition) {
  return condition == F32 ? slct<float> : condition == S32 ? slct<int32_t> : nullptr;
}
Handler testp_handler(Type t) { return t == F32 ? testp<float> : t == F64 ? testp<double> : nullptr; }

}  // namespace sim
