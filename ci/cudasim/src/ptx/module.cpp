// Reads the text of a PTX module: finds its functions, and lays out and fills its variables.
#include "ptx/text.h"
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace sim {
namespace {

// ".visible .entry name(params) .maxntid 128, 1, 1" or ".func (results) name(params)", up to the body
Function parse_signature(const std::string &text) {
  Function f;
  f.is_entry = text.find(".entry") != std::string::npos;
  size_t at = text.find(f.is_entry ? ".entry" : ".func") + (f.is_entry ? 6 : 5);
  const auto skip_spaces = [&] {
    while (at < text.size() && isspace((unsigned char)text[at])) at++;
  };
  const auto take_parentheses = [&]() -> std::string {
    if (at >= text.size() || text[at] != '(') return "";
    const size_t end = find_outside(text, ")", at + 1), start = at + 1;
    at = std::min(end + 1, text.size());
    return text.substr(start, end - start);
  };
  skip_spaces();
  f.results = take_parentheses();
  skip_spaces();
  while (starts_with(text, ".noreturn", at)) {
    at += 9;
    skip_spaces();
  }
  const size_t start = at;
  while (at < text.size() && !isspace((unsigned char)text[at]) && text[at] != '(') at++;
  f.name = text.substr(start, at - start);
  skip_spaces();
  f.parameters = take_parentheses();
  const size_t limit = text.find(".maxntid", at);
  if (limit != std::string::npos) {
    f.max_threads = 1;
    for (const auto &n : split(text.substr(limit + 8), ','))
      if (const int value = atoi(n.c_str()); value > 0) f.max_threads *= value;
  }
  return f;
}

// The value of one initialiser: a literal, or an address such as "name+8", "generic(name)" or "0xFF00(name)", which
// is a byte of an address.
uint64_t initial_value(const Module &m, const std::string &text, Type type) {
  uint64_t value;
  if (parse_literal(text, value, type) && text.find('(') == std::string::npos) return value;
  std::string symbol = text;
  int shift = 0;
  if (starts_with(symbol, "0xFF")) {
    const size_t open = symbol.find('(');
    const uint64_t mask = strtoull(symbol.substr(0, open).c_str(), nullptr, 16);
    shift = mask ? __builtin_ctzll(mask) : 0;
    symbol = symbol.substr(open + 1, symbol.rfind(')') - open - 1);
  }
  if (starts_with(symbol, "generic(")) symbol = symbol.substr(8, symbol.rfind(')') - 8);
  int64_t offset = 0;
  const size_t plus = symbol.find('+');
  if (plus != std::string::npos) {
    offset = strtoll(symbol.c_str() + plus + 1, nullptr, 0);
    symbol = trim(symbol.substr(0, plus));
  }
  const auto it = m.variables.find(symbol);
  if (it == m.variables.end()) throw std::runtime_error("initialiser refers to " + text);
  return (it->second.address + offset) >> shift;
}
void initialise(const Module &m, const Declaration &d) {
  std::string flat;
  for (const char c : d.initial)
    if (c != '{' && c != '}') flat += c;
  const auto values = split(flat, ',');
  const int width = size_of(d.type);
  auto *to = (uint8_t *)m.variables.at(d.name).address;
  if (values.size() * width > d.size) throw std::runtime_error("too many initial values for " + d.name);
  for (const auto &text : values) {
    const uint64_t value = initial_value(m, text, d.type);
    memcpy(to, &value, width);
    to += width;
  }
}

class Reader {
 public:
  Reader(Module &module, const std::string &text) : module_(module), text_(text) {}

  void read() {
    for (;;) {
      while (at_ < text_.size() && isspace((unsigned char)text_[at_])) at_++;
      if (at_ >= text_.size()) break;
      statement();
    }
    for (const auto &d : to_initialise_) initialise(module_, d);  // last: an address may be that of a later variable
  }

 private:
  Module &module_;
  const std::string &text_;
  size_t at_ = 0;
  std::vector<Declaration> to_initialise_;

  void skip_past(size_t place) { at_ = place == std::string::npos ? text_.size() : place + 1; }

  void statement() {
    const std::string head = text_.substr(at_, std::min(text_.find_first_of(";{\n", at_), text_.size()) - at_);
    const auto w = words(head);
    if (w.empty()) return skip_past(at_);
    static const char *const one_line[] = {".version", ".target", ".address_size", ".file", ".loc", ".pragma"};
    if (std::find(std::begin(one_line), std::end(one_line), w[0]) != std::end(one_line))
      return skip_past(text_.find('\n', at_));
    if (w[0] == ".section") return skip_past(find_closing_brace(text_, text_.find('{', at_)));  // debugging
    if (w[0] == ".alias") return skip_past(text_.find(';', at_));
    bool is_extern = false;
    for (const auto &x : w) {
      const std::string word = x.substr(0, x.find('('));
      if (word == ".extern") is_extern = true;
      if (word == ".func" || word == ".entry") return function();
      if (word == ".global") return variable(GLOBAL, is_extern);
      if (word == ".const") return variable(CONST, is_extern);
      if (word == ".shared") return variable(SHARED, is_extern);
    }
    throw std::runtime_error("unexpected text in PTX: " + head.substr(0, 80));
  }
  void function() {
    const size_t end = find_outside(text_, "{;", at_);
    Function f = parse_signature(text_.substr(at_, end - at_));
    at_ = end + 1;
    if (end >= text_.size() || text_[end] == ';') {  // a declaration; the body may have come already
      module_.functions.insert({f.name, f});
      return;
    }
    const size_t close = find_closing_brace(text_, end);
    if (close == std::string::npos) throw std::runtime_error("function " + f.name + " does not end");
    f.body = text_.substr(end + 1, close - end - 1);
    at_ = close + 1;
    module_.functions[f.name] = f;
  }
  void variable(Space space, bool is_extern) {
    const size_t end = find_outside(text_, ";", at_);
    const Declaration d = parse_declaration(text_.substr(at_, end - at_));
    at_ = end + 1;
    Variable v{d.name, space, 0, d.size, is_extern, d.align};
    if (space != SHARED) {
      v.address = allocate_for_module(std::max<uint64_t>(d.size, 1));
      if (!v.address) throw std::runtime_error("no memory for variable " + d.name);
      module_.allocations.push_back(v.address);
      memset((void *)v.address, 0, d.size);
      if (!d.initial.empty()) to_initialise_.push_back(d);
    }
    module_.variables[d.name] = v;
  }
};

}  // namespace

Module *load_module(const char *ptx, std::string &error) {
  auto module = std::make_unique<Module>();
  try {
    const std::string text = without_comments(ptx);
    Reader(*module, text).read();
  } catch (const std::exception &e) {
    error = e.what();
    free_module(module.release());
    return nullptr;
  }
  return module.release();
}
void free_module(Module *m) {
  if (!m) return;
  for (const uint64_t address : m->allocations) free_of_module(address);
  delete m;
}
std::vector<std::string> entry_names(const Module &m) {
  std::vector<std::string> names;
  for (const auto &[name, f] : m.functions)
    if (f.is_entry) names.push_back(name);
  return names;
}

}  // namespace sim
