// PTX loader and block-wide interpreter: data structures.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace sim {

enum Ty : uint8_t {
  NOTY,
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
int ty_size(Ty t);

enum Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONSTS };
enum Kind : uint8_t { NORMAL, BRA, BRX, EXITK, BAR, WARP, TRAPK, NOPK };

struct Ctx;
struct Ins;
typedef void (*Fn)(Ctx &, const Ins &);

struct Ins {
  Fn fn = nullptr;
  Kind kind = NORMAL;
  bool leader = false, pneg = false, sat = false, sneg = false;
  uint8_t csr = 0;  // bits 0-1 rounding (x86 RC), bit 2 flush denormals
  uint8_t mode = 0, mode2 = 0, vec = 1, sz = 0;
  Space space = GENERIC;
  Ty ty = NOTY, ty2 = NOTY;
  int pred = -1;
  int d[4] = {-1, -1, -1, -1};
  int s[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  int64_t imm = 0;
  int tgt = -1;
  std::vector<int> table;
  std::string text;
};

struct Param {
  std::string name;
  uint32_t off, size;
};

struct Kernel {
  std::string name;
  std::vector<Param> params;
  uint32_t param_size = 0;
  std::vector<Ins> code;
  int nslots = 0;
  std::vector<std::pair<int, uint64_t>> consts;        // slot, splatted value
  std::vector<std::pair<int, uint32_t>> param_consts;  // slot, offset in the parameter block
  std::vector<std::pair<int, int>> specials;           // slot, special id
  std::vector<int> dynsmem;                            // slots holding the address of extern shared
  uint32_t shared_static = 0, local_size = 0;
  int max_threads = 1024;
  std::string error;
  int max_dyn = 0;
};

struct Var {
  std::string name;
  Space space;
  uint64_t addr;
  uint64_t size;
  bool ext;
  uint32_t align;
};

struct FuncSrc {
  std::string name, body;
  bool entry = false;
  std::string params, rets;
  int maxntid = 0;
};

struct Module {
  std::string text;
  std::map<std::string, FuncSrc> funcs;
  std::map<std::string, Var> vars;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
  std::vector<std::pair<uint64_t, uint64_t>> allocs;
  std::string error;
};

// memory map supplied by the runtime part
uint64_t heap_alloc(uint64_t size, int flags);
int heap_free(uint64_t p);
bool mem_lookup(uint64_t a, uint64_t &lo, uint64_t &hi);

Module *module_load(const char *ptx, std::string &err);
void module_free(Module *);
Kernel *module_kernel(Module *, const std::string &name, std::string &err);
// returns 0 or a CUresult; msg explains
int kernel_run(Kernel *, const uint32_t grid[3], const uint32_t block[3], uint32_t dyn, const uint8_t *params,
               std::string &msg);
int device_cc();
int device_sms();
extern uint64_t total_ins;
std::vector<std::string> module_entries(Module *);

}  // namespace sim
