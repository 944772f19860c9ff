// Taking PTX text apart.
#pragma once
#include "ptx/program.h"

namespace sim {

std::string without_comments(const char *text);
std::string trim(const std::string &);
std::vector<std::string> split(const std::string &, char separator);  // outside of brackets; parts are trimmed
std::vector<std::string> words(const std::string &);
size_t find_closing_brace(const std::string &, size_t open);  // npos if there is none
bool starts_with(const std::string &text, const char *prefix, size_t at = 0);
// The first place at or after `at` where one of `characters` is outside of brackets; the end if there is none.
size_t find_outside(const std::string &, const char *characters, size_t at);

Type parse_type(const std::string &name);  // without the dot; NO_TYPE if it is none

// A literal as the bits of a register; false if the text is none. Throws for a decimal fraction of unknown type.
bool parse_literal(const std::string &, uint64_t &bits, Type = NO_TYPE);

struct Declaration {  // ".align 4 .b8 name[40] = {...}"
  std::string name, initial;
  Type type = NO_TYPE;
  uint64_t size = 0;
  uint32_t align = 1;
};
Declaration parse_declaration(const std::string &);

}  // namespace sim
