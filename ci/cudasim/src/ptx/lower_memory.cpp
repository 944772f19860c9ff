// Lowering of moves, loads, stores and atomics.
#include "ptx/builder.h"

namespace sim {

void Builder::lower_mov(Statement &s) {
  Instruction &i = s.instruction;
  const std::string &to = s.argument(0), &from = s.argument(1);
  i.width = size_of(s.type);
  if (to[0] == '{' || from[0] == '{') {
    if (s.type == B128) unsupported(s);
    const auto parts = elements(to[0] == '{' ? to : from);
    if (i.width % parts.size()) unsupported(s);
    i.count = parts.size();
    i.width /= parts.size();
    if (to[0] == '{') {
      for (size_t k = 0; k < parts.size(); k++) i.dst[k] = operand(parts[k]);
      i.src[0] = operand(from);
      return emit(s, split_handler());
    }
    i.dst[0] = operand(to);
    for (size_t k = 0; k < parts.size(); k++) i.src[k] = operand(parts[k]);
    return emit(s, join_handler());
  }
  if (starts_with(from, "%clock") || from == "%globaltimer") {
    i.dst[0] = operand(to);
    return emit(s, clock_handler());
  }
  destination_and_sources(s, 1);
  emit(s, s.type == NO_TYPE || s.type == B128 ? nullptr : mov_handler());
}
// The elements of .v2, .v4 or a single value.
std::vector<std::string> Builder::vector_elements(const Statement &s, const std::string &argument) const {
  const auto parts = elements(argument);
  if (parts.size() != (s.has("v4") ? 4u : s.has("v2") ? 2u : 1u)) unsupported(s);
  return parts;
}
// How the memory model of PTX orders an access: weak ones (.weak, or no word) not at all.
void Builder::memory_order(Statement &s, Effect effect) {
  Instruction &i = s.instruction;
  i.effect = effect;
  i.is_volatile = s.has("volatile");
  i.releases = s.has("release") || s.has("acq_rel");
  i.is_strong = effect == ATOMIC || i.releases || s.has("acquire") || s.has("relaxed");
}
void Builder::lower_ld(Statement &s) {
  Instruction &i = s.instruction;
  memory_order(s, READS);
  i.space = s.space();
  const auto parts = vector_elements(s, s.argument(0));
  i.count = parts.size();
  for (size_t k = 0; k < parts.size(); k++) i.dst[k] = operand(parts[k]);
  if (i.count == 1 && i.dst[0] < 0) i.dst[0] = new_slot();
  address(s.argument(1), i);
  emit(s, load_handler(s.type));
}
void Builder::lower_st(Statement &s) {
  Instruction &i = s.instruction;
  memory_order(s, WRITES);
  i.space = s.space();
  address(s.argument(0), i);
  const auto parts = vector_elements(s, s.argument(1));
  i.count = parts.size();
  for (size_t k = 0; k < parts.size(); k++) i.src[1 + k] = operand(parts[k], s.type);
  emit(s, store_handler(s.type));
}
void Builder::lower_cvta(Statement &s) {
  s.instruction.space = s.space();
  destination_and_sources(s, 1);
  emit(s, cvta_handler(s.space(), s.has("to")));
}
void Builder::lower_isspacep(Statement &s) {
  s.instruction.space = s.space();
  destination_and_sources(s, 1);
  emit(s, isspacep_handler());
}
void Builder::lower_atom(Statement &s) {  // atom, red
  Instruction &i = s.instruction;
  memory_order(s, ATOMIC);
  const size_t first = s.opcode == "atom" ? 1 : 0;
  i.space = s.space();
  if (first) i.dst[0] = operand(s.argument(0));
  address(s.argument(first), i);
  // in the order of AtomicOp
  const auto op =
      (AtomicOp)s.index_of({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}, NO_ATOMIC);
  const size_t operands = op == ATOMIC_CAS ? 2 : 1;
  if (s.arguments.size() != first + 1 + operands) unsupported(s);
  i.mode = op;
  for (size_t k = 0; k < operands; k++) i.src[1 + k] = operand(s.argument(first + 1 + k), s.type);
  emit(s, atomic_handler(op, s.type));
}

}  // namespace sim
