// Operands, declarations, labels and the body of a kernel; see builder.h.
#include "ptx/builder.h"
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

namespace sim {

int Builder::constant(uint64_t value) {
  const auto [it, is_new] = constant_slots_.insert({value, kernel_.slots});
  if (is_new) kernel_.constants.push_back({new_slot(), value});
  return it->second;
}
int Builder::special(Special what) {
  const auto [it, is_new] = special_slots_.insert({what, kernel_.slots});
  if (is_new) kernel_.specials.push_back({new_slot(), what});
  return it->second;
}
int Builder::parameter_address(uint32_t offset) {
  const auto [it, is_new] = parameter_slots_.insert({offset, kernel_.slots});
  if (is_new) kernel_.parameter_addresses.push_back({new_slot(), offset});
  return it->second;
}
int Builder::carry() {
  if (carry_ < 0) carry_ = new_slot();
  return carry_;
}

int Builder::find_register(const std::string &name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (const auto it = scope->registers.find(name); it != scope->registers.end()) return it->second;
  return -1;
}
bool Builder::find_variable(const std::string &name, Place &place) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (const auto it = scope->variables.find(name); it != scope->variables.end()) {
      place = it->second;
      return true;
    }
  const auto it = module_.variables.find(name);
  if (it == module_.variables.end()) return false;
  const Variable &v = it->second;
  if (v.space != SHARED) {
    if (v.is_extern) fail("extern variable " + name + " is defined in no module");
    place = {v.space, (int64_t)v.address};
    return true;
  }
  const auto [known, is_new] = module_shared_.insert({name, {SHARED, DYNAMIC}});
  if (is_new && !(v.is_extern && v.size == 0)) known->second.offset = allocate_shared(v.size, v.align);
  place = known->second;
  return true;
}
Builder::Place Builder::require_variable(const std::string &name, const char *what) {
  Place place;
  if (!find_variable(name, place)) fail(std::string(what) + " " + name);
  return place;
}
int64_t Builder::allocate_shared(uint64_t size, uint32_t align) {
  align = std::max(align, 1u);
  const uint32_t offset = (kernel_.shared_bytes + align - 1) / align * align;
  kernel_.shared_bytes = offset + size;
  return offset;
}
int64_t Builder::allocate_local(uint64_t size, uint32_t align) {
  align = std::max(align, 8u);
  const uint32_t offset = (kernel_.local_bytes + align - 1) / align * align;
  kernel_.local_bytes = offset + size;
  return offset;
}

int Builder::operand(const std::string &argument, Type type) {
  static const std::map<std::string, Special> specials = {{"%tid.x", TID_X},
                                                          {"%tid.y", TID_Y},
                                                          {"%tid.z", TID_Z},
                                                          {"%ntid.x", NTID_X},
                                                          {"%ntid.y", NTID_Y},
                                                          {"%ntid.z", NTID_Z},
                                                          {"%ctaid.x", CTAID_X},
                                                          {"%ctaid.y", CTAID_Y},
                                                          {"%ctaid.z", CTAID_Z},
                                                          {"%nctaid.x", NCTAID_X},
                                                          {"%nctaid.y", NCTAID_Y},
                                                          {"%nctaid.z", NCTAID_Z},
                                                          {"%laneid", LANEID},
                                                          {"%warpid", WARPID},
                                                          {"%nwarpid", NWARPID},
                                                          {"%smid", SMID},
                                                          {"%nsmid", NSMID},
                                                          {"%gridid", GRIDID},
                                                          {"%lanemask_eq", LANEMASK_EQ},
                                                          {"%lanemask_le", LANEMASK_LE},
                                                          {"%lanemask_lt", LANEMASK_LT},
                                                          {"%lanemask_ge", LANEMASK_GE},
                                                          {"%lanemask_gt", LANEMASK_GT},
                                                          {"%dynamic_smem_size", DYNAMIC_SMEM_SIZE},
                                                          {"%total_smem_size", TOTAL_SMEM_SIZE}};
  const std::string text = trim(argument);
  if (text == "_") return -1;
  if (const int slot = find_register(text); slot >= 0) return slot;
  if (text[0] == '%') {
    const auto it = specials.find(text);
    if (it == specials.end()) fail("unknown register " + text);
    return special(it->second);
  }
  if (text == "WARP_SZ") return constant(32);
  uint64_t value;
  if (parse_literal(text, value, type)) return constant(value);
  const size_t plus = text.find('+');
  const std::string name = trim(text.substr(0, plus));
  const int64_t offset = plus == std::string::npos ? 0 : strtoll(text.c_str() + plus + 1, nullptr, 0);
  Place place;
  if (!find_variable(name, place)) {
    // the address of a function: calls through it are refused, but it may be compared with null
    if (module_.functions.count(name)) return constant(0xF000000000000000ull);
    fail("unknown symbol " + name);
  }
  if (place.space == PARAM) return parameter_address((uint32_t)(place.offset + offset));
  if (place.space == SHARED && place.offset == DYNAMIC) {
    if (offset) fail("offset on dynamic shared memory");
    kernel_.dynamic_shared.push_back(new_slot());
    return kernel_.dynamic_shared.back();
  }
  return constant((uint64_t)(place.offset + offset));
}
void Builder::address(const std::string &argument, Instruction &i) {
  std::string text = trim(argument);
  if (text.size() < 2 || text[0] != '[') fail("address expected: " + text);
  text = trim(text.substr(1, text.rfind(']') - 1));
  size_t sign = text.find('+');
  if (sign == std::string::npos) sign = text.find('-', 1);
  const std::string name = trim(text.substr(0, sign));
  if (sign != std::string::npos) {
    const int64_t offset = strtoll(trim(text.substr(sign + 1)).c_str(), nullptr, 0);
    i.immediate = text[sign] == '-' ? -offset : offset;
  }
  Place place;
  uint64_t literal;
  const bool is_variable = find_register(name) < 0 && name[0] != '%' && !parse_literal(name, literal);
  if (is_variable) {
    if (!find_variable(name, place)) fail("unknown symbol " + name);
    if (place.space == LOCAL && i.space == PARAM) i.space = LOCAL;  // a parameter of an inlined call
  }
  i.src[0] = operand(name);
}
std::vector<std::string> Builder::elements(const std::string &argument) const {
  const std::string text = trim(argument);
  if (text[0] != '{') return {text};
  const auto parts = split(text.substr(1, text.rfind('}') - 1), ',');
  if (parts.size() > 4) fail("unsupported vector of " + std::to_string(parts.size()) + ": " + text);
  return parts;
}
void Builder::destination_pair(const std::string &argument, Instruction &i) {
  const auto parts = split(argument, '|');
  i.dst[0] = operand(parts.at(0));
  if (parts.size() > 1) i.dst[1] = operand(parts[1]);
}
int Builder::predicate(const std::string &argument, bool &negated) {
  const std::string text = trim(argument);
  negated = text[0] == '!';
  return operand(negated ? text.substr(1) : text);
}

void Builder::emit(Statement &s, Handler handler) {
  if (!handler) unsupported(s);
  s.instruction.run = handler;
  emit(s.instruction);
}
void Builder::branch(Instruction i, const std::string &label) {
  i.kind = BRANCH;
  branches_.push_back({(int)kernel_.code.size(), label});
  emit(std::move(i));
}

// Goes through the statements of a function: scopes, labels, directives and instructions.
void Builder::body(const std::string &text) {
  const auto is_space = [](char c) { return isspace((unsigned char)c) != 0; };
  const auto is_name = [](char c) { return isalnum((unsigned char)c) || strchr("_$.%", c); };
  scopes_.emplace_back();
  const size_t outermost = scopes_.size();
  size_t at = 0;
  for (;;) {
    while (at < text.size() && is_space(text[at])) at++;
    if (at >= text.size()) break;
    if (text[at] == '{') {
      scopes_.emplace_back();
      at++;
      continue;
    }
    if (text[at] == '}' || text[at] == ';') {
      if (text[at] == '}' && scopes_.size() > outermost) scopes_.pop_back();
      at++;
      continue;
    }
    size_t end = at;
    while (end < text.size() && text[end] && is_name(text[end])) end++;
    const size_t colon = text.find_first_not_of(" \t", end);
    const bool is_label = end > at && colon != std::string::npos && text[colon] == ':';
    if (is_label && !starts_with(text, "::", colon)) {  // not the "::" of a modifier
      at = label(text, at, colon);
      continue;
    }
    if (starts_with(text, ".loc ", at) || starts_with(text, ".loc\t", at)) {  // ends with the line, not with a ';'
      at = std::min(text.find('\n', at), text.size());
      continue;
    }
    size_t stop = at;
    while (stop < text.size() && text[stop] != ';') {
      if (text[stop] == '"') stop = std::min(text.find('"', stop + 1), text.size() - 1);
      stop++;
    }
    const std::string statement = trim(text.substr(at, stop - at));
    at = stop + 1;
    if (statement[0] == '.') directive(statement);
    else lower(statement);
  }
  scopes_.resize(outermost - 1);
}
// A label, or what is written after one; returns where the next statement starts.
size_t Builder::label(const std::string &text, size_t start, size_t colon) {
  const std::string name = trim(text.substr(start, colon - start));
  const size_t next = std::min(text.find_first_not_of(" \t\r\n", colon + 1), text.size());
  const bool is_table = starts_with(text, ".branchtargets", next);
  if (!is_table && !starts_with(text, ".callprototype", next)) {
    define_label(name);
    return next;
  }
  const size_t end = text.find(';', next);
  if (end == std::string::npos) fail("no ';' after label " + name);
  if (is_table) tables_[prefix_ + name] = split(text.substr(next + 14, end - next - 14), ',');
  return end + 1;
}
void Builder::directive(const std::string &text) {
  const std::string first = words(text).at(0);
  if (first == ".reg" || starts_with(first, ".reg.")) return declare_registers(text.substr(4));
  if (first == ".pragma" || first == ".maxnreg" || first == ".minnctapersm") return;  // hints to a compiler
  const bool is_extern = first == ".extern";
  const bool is_shared = first == ".shared" || (is_extern && text.find(".shared") != std::string::npos);
  if (!is_shared && first != ".local" && first != ".param") fail("unsupported directive " + text);
  const Declaration d = parse_declaration(text);
  Place place{LOCAL, 0};
  if (is_shared) place = {SHARED, is_extern ? DYNAMIC : allocate_shared(d.size, d.align)};
  else place.offset = allocate_local(d.size, d.align);
  scopes_.back().variables[d.name] = place;
}
// " .f32 %f<10>" or " .pred p, q"
void Builder::declare_registers(const std::string &text) {
  size_t at = text.find_first_not_of(" \t\r\n");
  while (at < text.size() && text[at] == '.') {
    const size_t end = text.find_first_of(" \t\r\n", at);
    at = text.find_first_not_of(" \t\r\n", end);
  }
  if (at == std::string::npos) fail("no names in .reg" + text);
  for (const auto &name : split(text.substr(at), ',')) {
    auto &registers = scopes_.back().registers;
    const size_t less = name.find('<');
    if (less == std::string::npos) registers[name] = new_slot();
    else
      for (int k = 0, count = atoi(name.c_str() + less + 1); k < count; k++)
        registers[trim(name.substr(0, less)) + std::to_string(k)] = new_slot();
  }
}

void Builder::resolve_branches() {
  const int count = kernel_.code.size();
  const auto find = [&](const std::string &label) {
    const auto it = labels_.find(label);
    if (it == labels_.end()) fail("unknown label " + label);
    return std::min(it->second, count - 1);
  };
  for (const auto &[at, label] : branches_) {
    kernel_.code[at].target = find(label);
    kernel_.code[kernel_.code[at].target].leader = true;
  }
  for (const auto &[at, name] : table_branches_) {
    const auto table = tables_.find(name);
    if (table == tables_.end()) fail("unknown branch table " + name);
    const std::string prefix = name.substr(0, name.find(':') + 1);  // find() + 1 is 0 if there is no prefix
    for (const auto &label : table->second) {
      const int target = find(prefix + label);
      kernel_.code[at].targets.push_back(target);
      kernel_.code[target].leader = true;
    }
  }
}
// Where groups of threads may meet: at targets of branches, after a branch or barrier, and at warp instructions.
void Builder::mark_leaders() {
  auto &code = kernel_.code;
  for (size_t k = 0; k < code.size(); k++) {
    if (code[k].kind == WARP) code[k].leader = true;
    if (k > 0 && (code[k - 1].kind == BRANCH || code[k - 1].kind == BARRIER)) code[k].leader = true;
  }
}

void Builder::build(const Function &entry) {
  if (entry.max_threads) kernel_.max_threads = entry.max_threads;
  scopes_.emplace_back();
  uint32_t offset = 0;
  for (const auto &text : split(entry.parameters, ',')) {
    if (text.empty()) continue;
    const Declaration d = parse_declaration(text);
    offset = (offset + d.align - 1) / d.align * d.align;
    kernel_.parameters.push_back({d.name, offset, (uint32_t)d.size});
    scopes_.back().variables[d.name] = {PARAM, offset};
    offset += d.size;
  }
  kernel_.parameter_bytes = offset;
  body(entry.body);
  Instruction end;
  end.kind = EXIT;
  end.text = "end";
  emit(end);
  resolve_branches();
  mark_leaders();
}

Kernel *find_kernel(Module &m, const std::string &name, std::string &error) {
  if (const auto it = m.kernels.find(name); it != m.kernels.end()) return it->second.get();
  const auto f = m.functions.find(name);
  if (f == m.functions.end() || !f->second.is_entry) {
    error = "named symbol not found: " + name;
    return nullptr;
  }
  auto kernel = std::make_unique<Kernel>();
  kernel->name = name;
  try {
    Builder(m, *kernel).build(f->second);
  } catch (const std::exception &e) {
    kernel->error = e.what();
  }
  return (m.kernels[name] = std::move(kernel)).get();
}

}  // namespace sim
