#include "ptx/text.h"
#include "common/small_floats.h"
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <stdexcept>
#include <unordered_map>

namespace sim {

int size_of(Type t) {
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
Type parse_type(const std::string &name) {
  static const std::unordered_map<std::string, Type> types = {
      {"pred", PRED}, {"b8", B8},     {"b16", B16},     {"b32", B32},     {"b64", B64},       {"u8", U8},
      {"u16", U16},   {"u32", U32},   {"u64", U64},     {"s8", S8},       {"s16", S16},       {"s32", S32},
      {"s64", S64},   {"f16", F16},   {"bf16", BF16},   {"f16x2", F16X2}, {"bf16x2", BF16X2}, {"f32", F32},
      {"f64", F64},   {"b128", B128}, {"u16x2", U16X2}, {"s16x2", S16X2}, {"f32x2", F32X2}};
  const auto it = types.find(name);
  return it == types.end() ? NO_TYPE : it->second;
}

std::string without_comments(const char *s) {
  std::string out;
  while (*s) {
    if (s[0] == '/' && s[1] == '/') {
      while (*s && *s != '\n') s++;
    } else if (s[0] == '/' && s[1] == '*') {
      s += 2;
      while (*s && !(s[0] == '*' && s[1] == '/')) s++;
      if (*s) s += 2;
    } else if (*s == '"') {
      out += *s++;
      while (*s && *s != '"') out += *s++;
      if (*s) out += *s++;
    } else out += *s++;
  }
  return out;
}
std::string trim(const std::string &s) {
  const size_t first = s.find_first_not_of(" \t\r\n"), last = s.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : s.substr(first, last - first + 1);
}
std::vector<std::string> split(const std::string &s, char separator) {
  std::vector<std::string> parts;
  int depth = 0;
  std::string part;
  for (const char c : s) {
    if (c == '(' || c == '{' || c == '[') depth++;
    if (c == ')' || c == '}' || c == ']') depth--;
    if (c == separator && depth == 0) {
      parts.push_back(trim(part));
      part.clear();
    } else part += c;
  }
  part = trim(part);
  if (!part.empty() || !parts.empty()) parts.push_back(part);
  return parts;
}
std::vector<std::string> words(const std::string &s) {
  std::vector<std::string> found;
  std::string word;
  for (const char c : s + " ") {
    if (!isspace((unsigned char)c)) word += c;
    else if (!word.empty()) {
      found.push_back(word);
      word.clear();
    }
  }
  return found;
}
bool starts_with(const std::string &text, const char *prefix, size_t at) {
  return text.compare(at, std::char_traits<char>::length(prefix), prefix) == 0;
}
size_t find_outside(const std::string &s, const char *characters, size_t at) {
  int depth = 0;
  for (; at < s.size(); at++) {
    if (depth == 0 && std::char_traits<char>::find(characters, std::char_traits<char>::length(characters), s[at]))
      break;
    if (s[at] == '(' || s[at] == '{' || s[at] == '[') depth++;
    if (s[at] == ')' || s[at] == '}' || s[at] == ']') depth--;
  }
  return at;
}
size_t find_closing_brace(const std::string &s, size_t at) {
  int depth = 0;
  for (; at < s.size(); at++) {
    if (s[at] == '"') at = std::min(s.find('"', at + 1), s.size());
    else if (s[at] == '{') depth++;
    else if (s[at] == '}' && --depth == 0) return at;
  }
  return std::string::npos;
}

bool parse_literal(const std::string &s, uint64_t &bits, Type type) {
  if (s.empty()) return false;
  if (s.size() > 2 && s[0] == '0' && strchr("fFdD", s[1])) {  // 0f3F800000, 0d3FF0000000000000: bits in hexadecimal
    bits = strtoull(s.c_str() + 2, nullptr, 16);
    return true;
  }
  const bool negative = s[0] == '-';
  const size_t start = negative || s[0] == '+' ? 1 : 0;
  if (start >= s.size() || !isdigit((unsigned char)s[start])) return false;
  if (s.find('.') != std::string::npos) {
    if (type == F64) bits = pack<double>(strtod(s.c_str(), nullptr));
    else if (type == F32) bits = pack<float>(strtof(s.c_str(), nullptr));
    else throw std::runtime_error("unsupported literal " + s);
    return true;
  }
  std::string digits = s.substr(start);
  while (!digits.empty() && (digits.back() == 'U' || digits.back() == 'u')) digits.pop_back();
  const bool binary = digits.size() > 2 && digits[0] == '0' && (digits[1] == 'b' || digits[1] == 'B');
  const uint64_t value = binary ? strtoull(digits.c_str() + 2, nullptr, 2) : strtoull(digits.c_str(), nullptr, 0);
  bits = negative ? 0 - value : value;
  return true;
}

Declaration parse_declaration(const std::string &text) {
  static const char *const without_meaning[] = {".ptr",     ".global", ".const", ".shared", ".local",  ".param",
                                                ".visible", ".extern", ".weak",  ".common", ".managed"};
  Declaration d;
  const size_t equals = text.find('=');
  if (equals != std::string::npos) d.initial = trim(text.substr(equals + 1));
  std::string spaced;
  for (const char c : text.substr(0, equals)) {
    if (c == '[') spaced += ' ';
    spaced += c;
  }
  const auto w = words(spaced);
  uint64_t count = 1;
  for (size_t k = 0; k < w.size(); k++) {
    if (starts_with(w[k], ".attribute(")) continue;
    if (w[k] == ".align") {
      if (++k < w.size()) d.align = atoi(w[k].c_str());
    } else if (w[k] == ".v2") count *= 2;
    else if (w[k] == ".v4") count *= 4;
    else if (std::find(std::begin(without_meaning), std::end(without_meaning), w[k]) != std::end(without_meaning)) {
    } else if (w[k][0] == '.') {
      d.type = parse_type(w[k].substr(1));
      if (d.type == NO_TYPE) throw std::runtime_error("unsupported word " + w[k] + " in " + trim(text).substr(0, 80));
    } else if (w[k][0] == '[') {
      std::string inside = w[k].substr(1);
      while (inside.find(']') == std::string::npos && k + 1 < w.size()) inside += w[++k];
      inside = trim(inside.substr(0, inside.find(']')));
      count = inside.empty() ? 0 : count * strtoull(inside.c_str(), nullptr, 0);
    } else d.name = w[k];
  }
  d.size = count * size_of(d.type);
  d.align = std::max<uint32_t>({d.align, (uint32_t)size_of(d.type), 1});
  return d;
}

}  // namespace sim
