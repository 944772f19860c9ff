// Lowering of branches, calls, barriers and warp instructions.
#include "ptx/builder.h"

namespace sim {

void Builder::lower_nothing(Statement &) {}
void Builder::lower_fence(Statement &s) {  // for the race check: every thread sees memory as the last one left it
  s.instruction.effect = FENCE;
  emit(s, nop_handler());
}
void Builder::lower_trap(Statement &s) { emit(s, trap_handler()); }

void Builder::lower_bra(Statement &s) { branch(s.instruction, prefix_ + s.argument(0)); }
void Builder::lower_brx(Statement &s) {
  s.instruction.kind = BRANCH_TABLE;
  s.instruction.src[0] = operand(s.argument(0));
  table_branches_.push_back({(int)kernel_.code.size(), prefix_ + s.argument(1)});
  emit(s.instruction);
}
void Builder::lower_exit(Statement &s) {
  s.instruction.kind = EXIT;
  emit(s.instruction);
}
void Builder::lower_ret(Statement &s) {
  if (depth_ == 0) lower_exit(s);
  else branch(s.instruction, prefix_ + "$ret");
}

// "(results), name, (arguments)", where the lists may be missing
void Builder::lower_call(Statement &s) {
  const auto list = [](const std::string &x) { return split(x.substr(1, x.rfind(')') - 1), ','); };
  std::vector<std::string> results, arguments;
  size_t k = 0;
  if (s.argument(k)[0] == '(') results = list(s.argument(k++));
  const std::string name = s.argument(k++);
  if (k < s.arguments.size() && s.arguments[k][0] == '(') arguments = list(s.arguments[k]);
  if (name == "vprintf") return call_printf(s, arguments);
  if (name == "__assertfail" || name == "__assert_fail") return emit(s, assert_handler());
  const auto f = module_.functions.find(name);
  if (f == module_.functions.end() || f->second.body.empty()) fail("unsupported: call of " + name);
  if (depth_ > 24) fail("unsupported: recursion or deep call chain at " + name);
  inline_call(s, f->second, arguments, results);
}
void Builder::call_printf(const Statement &s, const std::vector<std::string> &arguments) {
  Statement call = s;
  call.instruction.src[0] = load_argument(s, arguments.at(0));
  call.instruction.src[1] = load_argument(s, arguments.at(1));
  emit(call, printf_handler());
}
// A register with a 64-bit argument, which the caller has put into local memory.
int Builder::load_argument(const Statement &s, const std::string &name) {
  const Place place = require_variable(name, "unknown argument");
  Instruction i;
  i.run = load_handler(B64);
  i.space = LOCAL;
  i.src[0] = constant(place.offset);
  i.dst[0] = new_slot();
  i.guard = s.instruction.guard;
  i.guard_negated = s.instruction.guard_negated;
  i.text = "argument of a call";
  emit(i);
  return i.dst[0];
}
void Builder::inline_call(const Statement &s, const Function &f, const std::vector<std::string> &arguments,
                          const std::vector<std::string> &results) {
  const std::string after = prefix_ + "$after" + std::to_string(copies_++);
  if (s.instruction.guard >= 0) {  // threads for which the guard does not hold go round the call
    Instruction skip;
    skip.guard = s.instruction.guard;
    skip.guard_negated = !s.instruction.guard_negated;
    skip.text = "skip call";
    branch(skip, after);
  }
  Scope inside;
  const auto bind = [&](const std::string &declarations, const std::vector<std::string> &values, const char *what) {
    size_t k = 0;
    for (const auto &text : split(declarations, ',')) {
      if (text.empty()) continue;
      if (k >= values.size()) fail("too few arguments for " + f.name);
      inside.variables[parse_declaration(text).name] = require_variable(values[k++], what);
    }
  };
  bind(f.parameters, arguments, "unknown argument");
  bind(f.results, results, "unknown result");

  const auto outer_scopes = std::move(scopes_);
  const std::string outer_prefix = prefix_;
  scopes_.assign(1, inside);  // the function does not see the registers of its caller
  prefix_ = "f" + std::to_string(copies_++) + ":";
  depth_++;
  body(f.body);
  depth_--;
  define_label("$ret");
  prefix_ = outer_prefix;
  scopes_ = outer_scopes;
  labels_[after] = (int)kernel_.code.size();
  Instruction end;
  end.run = nop_handler();  // something for the labels to point at
  end.text = "end of call";
  emit(end);
}

void Builder::lower_bar(Statement &s) {  // bar, barrier
  Instruction &i = s.instruction;
  if (s.has("warp")) {
    i.kind = WARP;
    i.effect = WARP_BARRIER;
    i.mask = operand(s.argument(0));
    return emit(s, warp_barrier_handler());
  }
  i.kind = BARRIER;
  if (s.has("red")) {
    i.mode = s.has("popc") ? BARRIER_POPC : s.has("and") ? BARRIER_AND : BARRIER_OR;
    i.dst[0] = operand(s.argument(0));
    i.src[0] = operand(s.argument(1));
    i.src[1] = s.arguments.size() > 3 ? operand(s.arguments[2]) : -1;
    i.src[2] = predicate(s.arguments.back(), i.source_negated);
  } else {
    i.src[0] = operand(s.argument(0));
    i.src[1] = s.arguments.size() > 1 ? operand(s.arguments[1]) : -1;
  }
  emit(i);
}

void Builder::lanes(Statement &s, const std::string &mask) {  // that exchange something, and wait for each other
  s.instruction.mask = operand(mask);
  s.instruction.effect = WARP_EXCHANGE;
}
void Builder::lower_shfl(Statement &s) {
  Instruction &i = s.instruction;
  i.kind = WARP;
  const int mode = s.index_of({"up", "down", "bfly", "idx"}, -1);  // in the order of ShuffleMode
  i.mode = mode;
  destination_pair(s.argument(0), i);
  for (int k = 0; k < 3; k++) i.src[k] = operand(s.argument(1 + k));
  if (s.arguments.size() > 4) lanes(s, s.arguments[4]);
  emit(s, mode < 0 ? nullptr : shuffle_handler());
}
void Builder::lower_vote(Statement &s) {
  Instruction &i = s.instruction;
  i.kind = WARP;
  const int mode = s.index_of({"all", "any", "uni", "ballot"}, -1);  // in the order of VoteMode
  i.mode = mode;
  i.dst[0] = operand(s.argument(0));
  i.src[0] = predicate(s.argument(1), i.source_negated);
  if (s.arguments.size() > 2) lanes(s, s.arguments[2]);
  emit(s, mode < 0 ? nullptr : vote_handler());
}
void Builder::lower_match(Statement &s) {
  Instruction &i = s.instruction;
  i.kind = WARP;
  i.mode = s.has("all");
  i.width = size_of(s.type);
  destination_pair(s.argument(0), i);
  i.src[0] = operand(s.argument(1));
  lanes(s, s.argument(2));
  emit(s, match_handler());
}
void Builder::lower_redux(Statement &s) {
  Instruction &i = s.instruction;
  i.kind = WARP;
  const int op = s.index_of({"add", "min", "max", "and", "or", "xor"}, NO_ATOMIC);  // in the order of AtomicOp
  i.mode = op;
  i.dst[0] = operand(s.argument(0));
  i.src[0] = operand(s.argument(1));
  lanes(s, s.argument(2));
  emit(s, op == NO_ATOMIC || is_float(s.type) ? nullptr : reduce_handler());
}
void Builder::lower_activemask(Statement &s) {
  s.instruction.kind = WARP;
  s.instruction.dst[0] = operand(s.argument(0));
  emit(s, active_mask_handler());
}
void Builder::lower_elect(Statement &s) {
  s.instruction.kind = WARP;
  destination_pair(s.argument(0), s.instruction);
  lanes(s, s.argument(1));
  emit(s, elect_handler());
}

}  // namespace sim
