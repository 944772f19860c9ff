// The table of opcodes: what lowers each of them, and which modifiers it may have. A modifier that is not in the table
// stops the kernel with a message: one that is passed over in silence would give wrong numbers.
#include "ptx/builder.h"
#include <algorithm>
#include <cctype>

namespace sim {

bool Statement::has(const char *modifier) const {
  return std::find(modifiers.begin(), modifiers.end(), modifier) != modifiers.end();
}
int Statement::index_of(std::initializer_list<const char *> names, int otherwise) const {
  int k = 0;
  for (const char *name : names) {
    if (has(name)) return k;
    k++;
  }
  return otherwise;
}
const std::string &Statement::argument(size_t k) const {
  if (k >= arguments.size()) throw std::runtime_error("too few operands: " + text);
  return arguments[k];
}
Space Statement::space() const {
  for (const auto &m : modifiers) {
    const std::string name = m.substr(0, m.find(':'));
    if (name == "global") return GLOBAL;
    if (name == "shared") return SHARED;
    if (name == "local") return LOCAL;
    if (name == "param") return PARAM;
    if (name == "const") return CONST;
  }
  return GENERIC;
}

struct Builder::Opcode {
  void (Builder::*lower)(Statement &);
  std::string modifiers;
};

#define ROUNDING " rn rz rm rp"
#define SPACES " global shared shared::cta local param param::entry param::func const"
#define ORDERS " relaxed acquire release acq_rel volatile cta cluster gpu sys"
#define HINTS \
  " L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate L2::64B L2::128B L2::256B"
#define COMPARISONS " eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor"

const std::map<std::string, Builder::Opcode> &Builder::opcodes() {
  using B = Builder;
  static const std::string any = "*";  // for opcodes that do nothing here
  static const std::map<std::string, Opcode> table = {
      {"mov", {&B::lower_mov, ""}},
      {"ld", {&B::lower_ld, SPACES ORDERS HINTS " v2 v4 weak nc ca cg cs lu cv"}},
      {"ldu", {&B::lower_ld, " global v2 v4"}},
      {"st", {&B::lower_st, SPACES ORDERS HINTS " v2 v4 weak wb cg cs wt"}},
      {"cvta", {&B::lower_cvta, " to" SPACES}},
      {"isspacep", {&B::lower_isspacep, SPACES}},
      {"atom", {&B::lower_atom, SPACES ORDERS " noftz add min max and or xor exch cas inc dec"}},
      {"red", {&B::lower_atom, SPACES ORDERS " noftz add min max and or xor inc dec"}},
      {"cvt", {&B::lower_cvt, ROUNDING " rni rzi rmi rpi ftz sat"}},

      {"add", {&B::lower_add, ROUNDING " ftz sat cc"}},
      {"sub", {&B::lower_add, ROUNDING " ftz sat cc"}},
      {"addc", {&B::lower_add, " cc"}},
      {"subc", {&B::lower_add, " cc"}},
      {"mul", {&B::lower_mul, ROUNDING " lo hi wide ftz sat"}},
      {"mad", {&B::lower_mad, ROUNDING " lo hi wide ftz sat cc"}},
      {"fma", {&B::lower_mad, ROUNDING " ftz sat"}},
      {"madc", {&B::lower_mad, " lo hi cc"}},
      {"mul24", {&B::lower_mul24, " lo hi"}},
      {"mad24", {&B::lower_mul24, " lo hi"}},
      {"div", {&B::lower_typed<div_handler, 2>, ROUNDING " approx full ftz"}},
      {"rem", {&B::lower_typed<rem_handler, 2>, ""}},
      {"min", {&B::lower_min_max, " ftz NaN"}},
      {"max", {&B::lower_min_max, " ftz NaN"}},
      {"abs", {&B::lower_abs_neg, " ftz"}},
      {"neg", {&B::lower_abs_neg, " ftz"}},
      {"copysign", {&B::lower_typed<copysign_handler, 2>, ""}},
      {"rcp", {&B::lower_typed<rcp_handler, 1>, ROUNDING " approx ftz"}},
      {"sqrt", {&B::lower_typed<sqrt_handler, 1>, ROUNDING " approx ftz"}},
      {"rsqrt", {&B::lower_typed<rsqrt_handler, 1>, " approx ftz"}},
      {"sin", {&B::lower_typed<sin_handler, 1>, " approx ftz"}},
      {"cos", {&B::lower_typed<cos_handler, 1>, " approx ftz"}},
      {"ex2", {&B::lower_typed<ex2_handler, 1>, " approx ftz"}},
      {"lg2", {&B::lower_typed<lg2_handler, 1>, " approx ftz"}},
      {"tanh", {&B::lower_typed<tanh_handler, 1>, " approx"}},
      {"sad", {&B::lower_typed<sad_handler, 3>, ""}},
      {"dp4a", {&B::lower_dp4a, ""}},

      {"and", {&B::lower_typed<and_handler, 2>, ""}},
      {"or", {&B::lower_typed<or_handler, 2>, ""}},
      {"xor", {&B::lower_typed<xor_handler, 2>, ""}},
      {"not", {&B::lower_not, ""}},
      {"cnot", {&B::lower_typed<cnot_handler, 1>, ""}},
      {"shl", {&B::lower_typed<shl_handler, 2>, ""}},
      {"shr", {&B::lower_typed<shr_handler, 2>, ""}},
      {"shf", {&B::lower_shf, " l r clamp wrap"}},
      {"bfe", {&B::lower_typed<bfe_handler, 3>, ""}},
      {"bfi", {&B::lower_typed<bfi_handler, 4>, ""}},
      {"bfind", {&B::lower_bfind, " shiftamt"}},
      {"brev", {&B::lower_typed<brev_handler, 1>, ""}},
      {"popc", {&B::lower_typed<popc_handler, 1>, ""}},
      {"clz", {&B::lower_typed<clz_handler, 1>, ""}},
      {"prmt", {&B::lower_prmt, " f4e b4e rc8 ecl ecr rc16"}},
      {"lop3", {&B::lower_lop3, ""}},

      {"setp", {&B::lower_setp, COMPARISONS " ftz"}},
      {"set", {&B::lower_set, COMPARISONS " ftz"}},
      {"selp", {&B::lower_selp, ""}},
      {"slct", {&B::lower_slct, " ftz"}},
      {"testp", {&B::lower_testp, " finite infinite number notanumber normal subnormal"}},

      {"bra", {&B::lower_bra, " uni"}},
      {"brx", {&B::lower_brx, " idx uni"}},
      {"exit", {&B::lower_exit, ""}},
      {"ret", {&B::lower_ret, " uni"}},
      {"call", {&B::lower_call, " uni"}},
      {"trap", {&B::lower_trap, ""}},
      {"brkpt", {&B::lower_trap, ""}},
      {"bar", {&B::lower_bar, " warp sync red popc and or cta"}},
      {"barrier", {&B::lower_bar, " sync red popc and or cta aligned"}},
      {"shfl", {&B::lower_shfl, " sync up down bfly idx"}},
      {"vote", {&B::lower_vote, " sync all any uni ballot"}},
      {"match", {&B::lower_match, " any all sync"}},
      {"redux", {&B::lower_redux, " sync add min max and or xor"}},
      {"activemask", {&B::lower_activemask, ""}},
      {"elect", {&B::lower_elect, " sync"}},

      {"membar", {&B::lower_fence, any}},
      {"fence", {&B::lower_fence, any}},
      {"prefetch", {&B::lower_nothing, any}},
      {"prefetchu", {&B::lower_nothing, any}},
      {"applypriority", {&B::lower_nothing, any}},
      {"discard", {&B::lower_nothing, any}},
      {"nanosleep", {&B::lower_nothing, any}},
      {"pmevent", {&B::lower_nothing, any}},
      {"griddepcontrol", {&B::lower_nothing, any}},
  };
  return table;
}

namespace {
bool allows(const std::string &modifiers, const std::string &modifier) {
  return modifiers == "*" || (modifiers + " ").find(" " + modifier + " ") != std::string::npos;
}
}  // namespace

Statement Builder::parse(const std::string &text) {
  Statement s;
  s.text = text.substr(0, 160);
  std::replace_if(s.text.begin(), s.text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
  s.instruction.text = s.text;
  const auto end_of_word = [](const std::string &x) {
    return std::find_if(x.begin(), x.end(), [](unsigned char c) { return isspace(c); }) - x.begin();
  };
  std::string rest = text;
  if (rest[0] == '@') {
    const size_t end = end_of_word(rest);
    s.instruction.guard = predicate(rest.substr(1, end - 1), s.instruction.guard_negated);
    rest = trim(rest.substr(end));
  }
  const size_t end = end_of_word(rest);
  s.modifiers = split(rest.substr(0, end), '.');
  s.opcode = s.modifiers.at(0);
  s.modifiers.erase(s.modifiers.begin());
  s.arguments = split(trim(rest.substr(end)), ',');
  for (const auto &m : s.modifiers)
    if (const Type t = parse_type(m); t != NO_TYPE) s.types.push_back(t);
  if (!s.types.empty()) {
    s.type = s.types.back();
    s.instruction.type = s.types[0];
    s.instruction.type2 = s.types.size() > 1 ? s.types[1] : s.types[0];
  }
  s.instruction.rounding = s.index_of({"rn", "rm", "rp", "rz"}, 0);  // in the order of Rounding
  if (s.has("ftz")) s.instruction.rounding |= FLUSH;
  s.instruction.saturate = s.has("sat");
  return s;
}
void Builder::lower(const std::string &text) {
  Statement s = parse(text);
  const auto opcode = opcodes().find(s.opcode);
  if (opcode == opcodes().end()) unsupported(s);
  for (const auto &m : s.modifiers)
    if (parse_type(m) == NO_TYPE && !allows(opcode->second.modifiers, m))
      fail("unsupported modifier ." + m + ": " + s.text);
  (this->*opcode->second.lower)(s);
}
void Builder::destination_and_sources(Statement &s, int sources) {
  Instruction &i = s.instruction;
  i.dst[0] = operand(s.argument(0));
  if (i.dst[0] < 0) i.dst[0] = new_slot();
  for (int k = 0; k < sources; k++) {
    i.src[k] = operand(s.argument(1 + k), s.type);
    if (i.src[k] < 0) fail("a source cannot be _: " + s.text);
  }
}
template <Handler (*handler)(Type), int sources>
void Builder::lower_typed(Statement &s) {
  destination_and_sources(s, sources);
  emit(s, handler(s.type));
}

}  // namespace sim
