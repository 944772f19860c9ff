// Lowering of arithmetic, comparisons and conversions.
#include "ptx/builder.h"

namespace sim {

void Builder::lower_add(Statement &s) {  // add, sub, addc, subc
  Instruction &i = s.instruction;
  const bool subtracts = s.opcode[0] == 's', uses_carry = s.opcode.back() == 'c', sets_carry = s.has("cc");
  destination_and_sources(s, 2);
  if (uses_carry || sets_carry) {
    i.carry = carry();
    i.mode = (uses_carry ? USE_CARRY : 0) | (sets_carry ? SET_CARRY : 0) | (subtracts ? SUBTRACT : 0);
    return emit(s, add_carry_handler(s.type));
  }
  if (i.saturate && !is_float(s.type)) unsupported(s);
  emit(s, subtracts ? sub_handler(s.type) : add_handler(s.type));
  if (i.saturate) saturate(s);
}
void Builder::lower_mul(Statement &s) {
  destination_and_sources(s, 2);
  if (s.instruction.saturate && !is_float(s.type)) unsupported(s);
  if (s.has("wide")) return emit(s, mul_wide_handler(s.type));
  if (s.has("hi")) return emit(s, mul_hi_handler(s.type));
  emit(s, mul_handler(s.type));
  if (s.instruction.saturate) saturate(s);
}
void Builder::lower_mad(Statement &s) {  // mad, fma, madc
  Instruction &i = s.instruction;
  destination_and_sources(s, 3);
  if (i.saturate && !is_float(s.type)) unsupported(s);
  if (s.opcode == "madc" || s.has("cc")) {
    i.carry = carry();
    i.mode = (s.opcode == "madc" ? USE_CARRY : 0) | (s.has("cc") ? SET_CARRY : 0);
    i.mode2 = s.has("hi");
    return emit(s, mad_carry_handler(s.type));
  }
  if (is_float(s.type)) emit(s, fma_handler(s.type));
  else if (s.has("wide")) emit(s, mad_wide_handler(s.type));
  else if (s.has("hi")) emit(s, mad_hi_handler(s.type));
  else emit(s, mad_handler(s.type));
  if (i.saturate) saturate(s);
}
void Builder::lower_mul24(Statement &s) {  // mul24, mad24
  destination_and_sources(s, s.opcode == "mul24" ? 2 : 3);
  s.instruction.mode = s.has("hi");
  emit(s, s.type == S32 || s.type == U32 ? mul24_handler(s.type == S32) : nullptr);
}
void Builder::lower_min_max(Statement &s) {
  const auto choose = s.opcode == "min" ? min_handler : max_handler;
  const Handler handler = choose(s.type, s.has("NaN"), s.has("ftz"));
  const bool three = s.arguments.size() > 3;
  destination_and_sources(s, three ? 3 : 2);
  if (three) {
    Statement first = s;
    first.instruction.dst[0] = new_slot();
    emit(first, handler);
    s.instruction.src[0] = first.instruction.dst[0];
    s.instruction.src[1] = s.instruction.src[2];
  }
  emit(s, handler);
}
void Builder::lower_abs_neg(Statement &s) {
  destination_and_sources(s, 1);
  emit(s, (s.opcode == "abs" ? abs_handler : neg_handler)(s.type, s.has("ftz")));
}
// A second instruction, which clamps the result of the first.
void Builder::saturate(const Statement &s) {
  Instruction i;
  i.run = saturate_handler(s.type);
  if (!i.run) unsupported(s);
  i.dst[0] = i.src[0] = s.instruction.dst[0];
  i.guard = s.instruction.guard;
  i.guard_negated = s.instruction.guard_negated;
  i.text = s.text;
  emit(i);
}
void Builder::lower_dp4a(Statement &s) {
  destination_and_sources(s, 3);
  if (s.types.size() != 2) unsupported(s);
  s.instruction.mode = (s.types[0] == S32 ? 1 : 0) | (s.types[1] == S32 ? 2 : 0);
  emit(s, dp4a_handler());
}

void Builder::lower_not(Statement &s) {
  destination_and_sources(s, 1);
  if (s.type != PRED) return emit(s, not_handler(s.type));
  s.instruction.src[1] = constant(1);  // of a predicate only the low bit counts
  emit(s, xor_handler(PRED));
}
void Builder::lower_shf(Statement &s) {
  destination_and_sources(s, 3);
  s.instruction.mode = (s.has("r") ? 1 : 0) | (s.has("wrap") ? 2 : 0);
  emit(s, shf_handler());
}
void Builder::lower_bfind(Statement &s) {
  destination_and_sources(s, 1);
  s.instruction.mode = s.has("shiftamt");
  emit(s, bfind_handler(s.type));
}
void Builder::lower_prmt(Statement &s) {
  destination_and_sources(s, 3);
  s.instruction.mode = 1 + s.index_of({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"}, -1);  // in the order of PermuteMode
  emit(s, prmt_handler());
}
void Builder::lower_lop3(Statement &s) {
  uint64_t table;
  destination_and_sources(s, 3);
  if (s.arguments.size() != 5 || !parse_literal(s.arguments[4], table)) unsupported(s);
  s.instruction.immediate = table;
  emit(s, lop3_handler());
}

namespace {
Comparison parse_comparison(const Statement &s) {
  static const std::map<std::string, Comparison> names = {
      {"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},   {"ge", GE},
      {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},   {"equ", EQU}, {"neu", NEU},
      {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NAN_}};
  const auto it = s.modifiers.empty() ? names.end() : names.find(s.modifiers[0]);
  return it == names.end() ? NO_COMPARISON : it->second;
}
}  // namespace

// Reads the predicate with which the result is combined, if there is one.
Combination Builder::combination(Statement &s) {
  Instruction &i = s.instruction;
  const auto how = (Combination)(1 + s.index_of({"and", "or", "xor"}, -1));
  if (how != ALONE) i.src[2] = predicate(s.argument(3), i.source_negated);
  i.mode2 = how;
  return how;
}
void Builder::lower_setp(Statement &s) {
  Instruction &i = s.instruction;
  const Comparison comparison = parse_comparison(s);
  destination_pair(s.argument(0), i);
  i.src[0] = operand(s.argument(1), s.type);
  i.src[1] = operand(s.argument(2), s.type);
  i.mode = comparison;
  emit(s, setp_handler(comparison, s.type, combination(s)));
}
void Builder::lower_set(Statement &s) {
  const Comparison comparison = parse_comparison(s);
  if (s.types.size() != 2 || comparison == NO_COMPARISON) unsupported(s);
  if (comparison > GE && !is_float(s.types[1])) unsupported(s);  // the others tell numbers from NaN
  destination_and_sources(s, 2);
  s.instruction.mode = comparison;
  emit(s, set_handler(s.types[1], combination(s)));
}
void Builder::lower_selp(Statement &s) {
  Instruction &i = s.instruction;
  destination_and_sources(s, 2);
  i.src[2] = predicate(s.argument(3), i.source_negated);
  emit(s, selp_handler());
}
void Builder::lower_slct(Statement &s) {
  if (s.types.size() != 2) unsupported(s);
  destination_and_sources(s, 3);
  emit(s, slct_handler(s.types[1]));
}
void Builder::lower_testp(Statement &s) {
  destination_and_sources(s, 1);
  // in the order of TestMode
  const int mode = s.index_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"}, -1);
  s.instruction.mode = mode;
  emit(s, mode < 0 ? nullptr : testp_handler(s.type));
}

void Builder::lower_cvt(Statement &s) {
  if (s.types.size() != 2) unsupported(s);
  const Type to = s.types[0], from = s.types[1];
  Instruction &i = s.instruction;
  i.mode = 1 + s.index_of({"rni", "rzi", "rmi", "rpi"}, -1);  // in the order of IntegerRounding
  if (to == F16X2 || to == BF16X2) {
    if (from != F32 || i.saturate) unsupported(s);
    destination_and_sources(s, 2);
    return emit(s, cvt_pair_handler(to));
  }
  if (i.saturate && (to == BF16 || (is_float(to) && !is_float(from)))) unsupported(s);
  destination_and_sources(s, 1);
  emit(s, cvt_handler(to, from));
}

}  // namespace sim
