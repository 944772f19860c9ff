// A PTX module and its kernels, from text to instructions, and the functions that the runtime calls.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sim {

// .b8, .u16, .f32 and so on. NO_TYPE: the text names none.
enum Type : uint8_t {
  NO_TYPE,
  PRED,
  B8,
  B16,
  B32,
  B64,
  U8,
  U16,
  U32,
  U64,
  S8,
  S16,
  S32,
  S64,
  F16,
  BF16,
  F16X2,
  BF16X2,
  F32,
  F64,
  B128,
  U16X2,
  S16X2,
  F32X2
};
int size_of(Type);  // bytes; 0 for NO_TYPE
inline bool is_float(Type t) {
  return t == F16 || t == BF16 || t == F16X2 || t == BF16X2 || t == F32 || t == F64 || t == F32X2;
}

enum Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };

// What the scheduler (run.cpp) does with an instruction. NORMAL ones have a handler and touch one thread at a time.
enum Kind : uint8_t { NORMAL, BRANCH, BRANCH_TABLE, EXIT, BARRIER, WARP };

// What the race check (race.cpp) sees in an instruction.
enum Effect : uint8_t { NO_EFFECT, READS, WRITES, ATOMIC, FENCE, WARP_BARRIER, WARP_EXCHANGE };

struct Block;
struct Instruction;
using Handler = void (*)(Block &, const Instruction &);  // executes an instruction for all active threads

// Registers are numbered slots. -1 stands for none.
struct Instruction {
  Handler run = nullptr;
  Kind kind = NORMAL;
  bool leader = false;         // threads that took other ways may join here
  bool guard_negated = false;  // @!p
  bool saturate = false;
  bool source_negated = false;  // the predicate among the sources is !p
  uint8_t rounding = 0;         // a Rounding, plus FLUSH
  uint8_t mode = 0, mode2 = 0;  // which of its forms; each handler says what they mean
  uint8_t count = 1;            // elements of a vector
  uint8_t width = 0;            // bytes of one element
  Space space = GENERIC;
  Effect effect = NO_EFFECT;
  bool is_strong = false, is_volatile = false, releases = false;  // of memory: the words of PTX
  Type type = NO_TYPE, type2 = NO_TYPE;                           // the first and the second type of the opcode
  int guard = -1;                                                 // predicate register
  int dst[4] = {-1, -1, -1, -1};
  int src[5] = {-1, -1, -1, -1, -1};
  int carry = -1;         // register of the carry flag
  int mask = -1;          // lanes that a warp instruction waits for
  int64_t immediate = 0;  // offset of an address, or table of lop3
  int target = -1;        // of a branch: index of an instruction
  std::vector<int> targets;
  std::string text;  // for messages
};
constexpr uint8_t FLUSH = 4;  // .ftz: subnormal float32 count as zero

struct Parameter {
  std::string name;
  uint32_t offset, size;
};

// Special registers that a kernel reads; each gets a slot that is filled before it runs.
enum Special {
  TID_X,
  TID_Y,
  TID_Z,
  NTID_X,
  NTID_Y,
  NTID_Z,
  CTAID_X,
  CTAID_Y,
  CTAID_Z,
  NCTAID_X,
  NCTAID_Y,
  NCTAID_Z,
  LANEID,
  WARPID,
  NWARPID,
  SMID,
  NSMID,
  GRIDID,
  LANEMASK_EQ,
  LANEMASK_LE,
  LANEMASK_LT,
  LANEMASK_GE,
  LANEMASK_GT,
  DYNAMIC_SMEM_SIZE,
  TOTAL_SMEM_SIZE
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  std::vector<Instruction> code;
  int slots = 0;
  std::vector<std::pair<int, uint64_t>> constants;            // slot, value
  std::vector<std::pair<int, uint32_t>> parameter_addresses;  // slot, offset in the parameters
  std::vector<std::pair<int, Special>> specials;              // slot, what it holds
  std::vector<int> dynamic_shared;                            // slots that hold where extern shared memory starts
  uint32_t shared_bytes = 0, local_bytes = 0;
  int max_threads = 1024;
  int max_dynamic_shared = 0;  // set by cuFuncSetAttribute; 0 for the default
  std::string error;           // why it cannot run; empty if it can
};

struct Variable {
  std::string name;
  Space space;
  uint64_t address, size;
  bool is_extern;
  uint32_t align;
};

struct Function {  // text of a .func or .entry
  std::string name, body, parameters, results;
  bool is_entry = false;
  int max_threads = 0;  // 0: not given
};

struct Module {
  std::map<std::string, Function> functions;
  std::map<std::string, Variable> variables;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;  // those asked for so far
  std::vector<uint64_t> allocations;
};

Module *load_module(const char *ptx, std::string &error);  // null and a text on failure
void free_module(Module *);
std::vector<std::string> entry_names(const Module &);
// Null if there is no such kernel. One that cannot run is returned with its `error`.
Kernel *find_kernel(Module &, const std::string &name, std::string &error);

struct Extent {
  uint32_t x, y, z;
};
// Runs all blocks; returns 0 or a CUresult that `message` explains.
int run_kernel(const Kernel &, Extent grid, Extent block, uint32_t dynamic_shared, const uint8_t *parameters,
               bool check_races, std::string &message);
uint64_t instructions_run();  // thread-instructions of all kernels so far

// From the runtime (memory.cpp): memory of module variables, and the allocation that holds an address.
uint64_t allocate_for_module(uint64_t size);
void free_of_module(uint64_t address);
bool find_allocation(uint64_t address, uint64_t &start, uint64_t &size);

}  // namespace sim
