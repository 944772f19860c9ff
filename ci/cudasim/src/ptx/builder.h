// Turns the text of one kernel into instructions. Calls are inlined, so a kernel is one list of instructions with one
// set of registers; parameters of inlined functions live in local memory.
#pragma once
#include "ptx/handlers.h"
#include "ptx/program.h"
#include "ptx/text.h"
#include <stdexcept>

namespace sim {

// A statement such as "@!%p1 add.rn.f32 %f1, %f2, %f3" taken apart.
struct Statement {
  std::string text, opcode;
  std::vector<std::string> modifiers, arguments;
  std::vector<Type> types;
  Type type = NO_TYPE;  // the last one: for most opcodes the only one
  Instruction instruction;

  bool has(const char *modifier) const;
  // The index of the first of `names` that is among the modifiers; `otherwise` if none is.
  int index_of(std::initializer_list<const char *> names, int otherwise) const;
  const std::string &argument(size_t k) const;  // throws if there are too few
  Space space() const;
};

class Builder {
 public:
  Builder(Module &module, Kernel &kernel) : module_(module), kernel_(kernel) {}
  void build(const Function &entry);

 private:
  struct Opcode;  // lower.cpp: how each opcode is lowered, and the modifiers it may have
  static const std::map<std::string, Opcode> &opcodes();

  struct Place {
    Space space;
    int64_t offset;
  };
  static constexpr int64_t DYNAMIC = -1;  // offset of extern shared memory, which is known at launch
  struct Scope {
    std::map<std::string, int> registers;
    std::map<std::string, Place> variables;
  };

  Module &module_;
  Kernel &kernel_;
  std::vector<Scope> scopes_;
  std::map<std::string, Place> module_shared_;  // shared variables of the module that this kernel uses
  int carry_ = -1;
  // Labels get a prefix in each inlined copy of a function. Branches are resolved when all labels are known.
  std::string prefix_;
  int depth_ = 0, copies_ = 0;
  std::map<std::string, int> labels_;
  std::map<std::string, std::vector<std::string>> tables_;  // .branchtargets
  std::vector<std::pair<int, std::string>> branches_, table_branches_;
  std::map<uint64_t, int> constant_slots_;
  std::map<uint32_t, int> parameter_slots_;
  std::map<Special, int> special_slots_;

  [[noreturn]] static void fail(const std::string &why) { throw std::runtime_error(why); }
  [[noreturn]] static void unsupported(const Statement &s) { fail("unsupported instruction: " + s.text); }

  // builder.cpp: registers, operands, declarations, labels
  int new_slot() { return kernel_.slots++; }
  int constant(uint64_t value);
  int special(Special);
  int parameter_address(uint32_t offset);
  int carry();
  int find_register(const std::string &name) const;  // -1 if there is none
  bool find_variable(const std::string &name, Place &);
  Place require_variable(const std::string &name, const char *what);
  int64_t allocate_shared(uint64_t size, uint32_t align);
  int64_t allocate_local(uint64_t size, uint32_t align);
  int operand(const std::string &, Type = NO_TYPE);              // the slot that holds it; -1 for "_"
  void address(const std::string &, Instruction &);              // "[x+8]" into src[0] and immediate
  std::vector<std::string> elements(const std::string &) const;  // "{a, b}" or "a"
  void destination_pair(const std::string &, Instruction &);     // "d|p"
  int predicate(const std::string &, bool &negated);             // "!p"
  void body(const std::string &text);
  size_t label(const std::string &text, size_t start, size_t end);
  void directive(const std::string &text);
  void declare_registers(const std::string &text);
  void define_label(const std::string &name) { labels_[prefix_ + name] = (int)kernel_.code.size(); }
  void emit(Instruction i) { kernel_.code.push_back(std::move(i)); }
  void emit(Statement &s, Handler);  // fails if there is no handler
  void branch(Instruction i, const std::string &label);
  void resolve_branches();
  void mark_leaders();

  // lower.cpp
  void lower(const std::string &text);
  Statement parse(const std::string &text);
  void destination_and_sources(Statement &, int sources);
  template <Handler (*handler)(Type), int sources>
  void lower_typed(Statement &);  // opcodes of which only the type matters

  // lower_arithmetic.cpp
  void lower_add(Statement &);
  void lower_mul(Statement &);
  void lower_mad(Statement &);
  void lower_mul24(Statement &);
  void lower_min_max(Statement &);
  void lower_abs_neg(Statement &);
  void saturate(const Statement &);
  void lower_dp4a(Statement &);
  void lower_not(Statement &);
  void lower_shf(Statement &);
  void lower_bfind(Statement &);
  void lower_prmt(Statement &);
  void lower_lop3(Statement &);
  void lower_setp(Statement &);
  void lower_set(Statement &);
  void lower_selp(Statement &);
  void lower_slct(Statement &);
  void lower_testp(Statement &);
  void lower_cvt(Statement &);
  Combination combination(Statement &);

  // lower_memory.cpp
  void lower_mov(Statement &);
  std::vector<std::string> vector_elements(const Statement &, const std::string &argument) const;
  static void memory_order(Statement &, Effect);
  void lower_ld(Statement &);
  void lower_st(Statement &);
  void lower_cvta(Statement &);
  void lower_isspacep(Statement &);
  void lower_atom(Statement &);

  // lower_control.cpp
  void lower_nothing(Statement &);
  void lower_fence(Statement &);
  void lower_trap(Statement &);
  void lower_bra(Statement &);
  void lower_brx(Statement &);
  void lower_exit(Statement &);
  void lower_ret(Statement &);
  void lower_call(Statement &);
  void call_printf(const Statement &, const std::vector<std::string> &arguments);
  int load_argument(const Statement &, const std::string &name);
  void inline_call(const Statement &, const Function &, const std::vector<std::string> &arguments,
                   const std::vector<std::string> &results);
  void lower_bar(Statement &);
  void lanes(Statement &, const std::string &mask);
  void lower_shfl(Statement &);
  void lower_vote(Statement &);
  void lower_match(Statement &);
  void lower_redux(Statement &);
  void lower_activemask(Statement &);
  void lower_elect(Statement &);
};

}  // namespace sim
