// Runs a kernel: block after block, each instruction for all threads of a block that are at it.
//
// Threads of a block that are at the same instruction form a group. A group runs until its threads take different
// ways, until it meets another group, or until it waits. The group that is furthest back runs first: so threads that
// took different ways meet again where the ways join.
#include "common/settings.h"
#include "ptx/block.h"
#include "ptx/handlers.h"
#include "ptx/race.h"
#include <algorithm>
#include <atomic>
#include <xmmintrin.h>

namespace sim {
namespace {

std::atomic<uint64_t> total_instructions{0};

using Threads = std::vector<uint16_t>;

struct Group {
  uint32_t at;         // index of the next instruction
  Threads threads;     // ascending
  bool waits = false;  // for other lanes of its warps
};

struct Arrival {
  uint16_t thread;
  uint32_t at;  // the barrier instruction
};
struct BarrierState {
  std::vector<Arrival> arrived;
  int expected = -1;  // threads; -1: all that live
};

// The x86 control register of floating point for a kernel: PTX rounds to nearest and keeps subnormals by default.
class FloatMode {
 public:
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(STANDARD); }
  ~FloatMode() { _mm_setcsr(saved_); }
  static void set(uint8_t rounding) {
    _mm_setcsr(STANDARD | (unsigned)(rounding & 3) << 13 | ((rounding & FLUSH) ? FLUSH_BOTH : 0));
  }
  static void reset() { _mm_setcsr(STANDARD); }

 private:
  static constexpr unsigned STANDARD = 0x1F80, FLUSH_BOTH = 0x8040;
  unsigned saved_;
};

struct AlignedBuffer {  // zeros, aligned to 16 bytes
  std::vector<uint8_t> bytes;
  uint8_t *make(size_t size) {
    bytes.assign(size + 32, 0);
    return (uint8_t *)(((uint64_t)bytes.data() + 15) & ~15ull);
  }
};
uint32_t round_up_to_16(uint32_t n) { return (n + 15) & ~15u; }

class Runner {
 public:
  Runner(const Kernel &kernel, bool check_races) : kernel_(kernel), check_races_(check_races) {}
  ~Runner() { total_instructions += count_; }

  void run(Extent grid, Extent size, uint32_t dynamic_shared, const uint8_t *parameters) {
    prepare(grid, size, dynamic_shared, parameters);
    for (uint32_t z = 0; z < grid.z; z++)
      for (uint32_t y = 0; y < grid.y; y++)
        for (uint32_t x = 0; x < grid.x; x++) {
          block_.index = {x, y, z};
          for (const auto &[slot, what] : block_specials_) fill(slot, what == CTAID_X ? x : what == CTAID_Y ? y : z);
          memset(block_.shared, 0xA5, block_.shared_bytes);  // not zero: it is undefined on a device
          if (race_) race_->start_block();
          run_block();
        }
  }

 private:
  const Kernel &kernel_;
  const bool check_races_;
  Block block_;
  std::vector<uint64_t> registers_;
  AlignedBuffer shared_, local_, parameters_;
  std::vector<std::pair<int, Special>> block_specials_;  // those that differ from block to block
  uint32_t live_ = 0;                                    // threads that have not exited
  std::vector<Group> groups_;                            // all but the one that runs
  std::map<uint64_t, BarrierState> barriers_;
  Threads taken_, others_;
  uint64_t count_ = 0;
  std::unique_ptr<RaceCheck> race_;

  void fill(int slot, uint64_t value) { std::fill_n(block_.reg(slot), block_.stride, value); }

  void prepare(Extent grid, Extent size, uint32_t dynamic_shared, const uint8_t *parameters) {
    Block &b = block_;
    b.kernel = &kernel_;
    b.grid = grid;
    b.size = size;
    b.threads = size.x * size.y * size.z;
    b.stride = (b.threads + 31) & ~31u;
    b.live.assign(b.stride / 32, 0);
    registers_.assign((size_t)kernel_.slots * b.stride, 0);
    b.registers = registers_.data();
    const uint32_t static_shared = round_up_to_16(kernel_.shared_bytes);
    b.shared_bytes = static_shared + dynamic_shared;
    b.shared = shared_.make(b.shared_bytes);
    b.local_bytes = round_up_to_16(kernel_.local_bytes);
    if (b.local_bytes) b.local = local_.make(b.local_bytes * b.stride);
    uint8_t *copy = parameters_.make(kernel_.parameter_bytes);
    memcpy(copy, parameters, kernel_.parameter_bytes);
    b.parameters = copy;
    b.parameter_bytes = kernel_.parameter_bytes;

    if (check_races_) race_ = std::make_unique<RaceCheck>(b);

    for (const auto &[slot, value] : kernel_.constants) fill(slot, value);
    for (const auto &[slot, offset] : kernel_.parameter_addresses) fill(slot, (uint64_t)copy + offset);
    for (const int slot : kernel_.dynamic_shared) fill(slot, static_shared);
    for (const auto &[slot, what] : kernel_.specials) {
      if (what >= CTAID_X && what <= CTAID_Z) {
        block_specials_.push_back({slot, what});
        continue;
      }
      uint64_t *r = b.reg(slot);
      for (uint32_t t = 0; t < b.stride; t++) r[t] = special(what, t, static_shared, dynamic_shared);
    }
  }
  uint64_t special(Special what, uint32_t t, uint32_t static_shared, uint32_t dynamic_shared) const {
    const Extent grid = block_.grid, size = block_.size;
    const uint32_t lane = t & 31;
    switch (what) {
      case TID_X: return t % size.x;
      case TID_Y: return t / size.x % size.y;
      case TID_Z: return t / (size.x * size.y);
      case NTID_X: return size.x;
      case NTID_Y: return size.y;
      case NTID_Z: return size.z;
      case NCTAID_X: return grid.x;
      case NCTAID_Y: return grid.y;
      case NCTAID_Z: return grid.z;
      case LANEID: return lane;
      case WARPID: return t >> 5;
      case NWARPID: return 32;
      case NSMID: return MULTIPROCESSORS;
      case LANEMASK_EQ: return 1u << lane;
      case LANEMASK_LE: return (uint32_t)((2ull << lane) - 1);
      case LANEMASK_LT: return (1u << lane) - 1;
      case LANEMASK_GE: return (uint32_t)~((1u << lane) - 1);
      case LANEMASK_GT: return (uint32_t)~((2ull << lane) - 1);
      case DYNAMIC_SMEM_SIZE: return dynamic_shared;
      case TOTAL_SMEM_SIZE: return static_shared + dynamic_shared;
      default: return 0;  // one multiprocessor and one grid at a time: %smid, %gridid
    }
  }

  void execute(const Instruction &i) {
    count_ += block_.all_active ? block_.threads : block_.active_count;
    if (race_ && i.effect != NO_EFFECT) race_->note(i);
    if (__builtin_expect(i.rounding != 0, 0)) {
      FloatMode::set(i.rounding);
      i.run(block_, i);
      FloatMode::reset();
    } else i.run(block_, i);
  }
  void set_active(const Threads &threads) {
    block_.active = threads.data();
    block_.active_count = threads.size();
    block_.all_active = threads.size() == block_.threads;
  }
  bool guard_holds(const Instruction &i, uint16_t t) const {
    return i.guard < 0 || ((block_.reg(i.guard)[t] & 1) != 0) != i.guard_negated;
  }
  void split_by_guard(const Instruction &i, const Threads &threads) {
    taken_.clear();
    others_.clear();
    for (const uint16_t t : threads) (guard_holds(i, t) ? taken_ : others_).push_back(t);
  }
  void add_group(uint32_t at, Threads threads) {
    if (!threads.empty()) groups_.push_back({at, std::move(threads), false});
  }
  void add_groups(std::map<uint32_t, Threads> &by_place) {
    for (auto &[at, threads] : by_place) {
      std::sort(threads.begin(), threads.end());
      add_group(at, std::move(threads));
    }
  }

  void run_block() {
    groups_.clear();
    barriers_.clear();
    live_ = block_.threads;
    std::fill(block_.live.begin(), block_.live.end(), 0);
    Threads all(block_.threads);
    for (uint32_t t = 0; t < block_.threads; t++) {
      all[t] = t;
      block_.live[t >> 5] |= 1u << (t & 31);
    }
    add_group(0, std::move(all));
    for (;;) {
      const auto runs_before = [](const Group &x, const Group &y) {
        return x.waits != y.waits ? y.waits : x.at < y.at;
      };
      const auto next = std::min_element(groups_.begin(), groups_.end(), runs_before);
      if (next == groups_.end() || next->waits) {
        if (live_ == 0) return;
        if (!release_barrier()) cannot_go_on();
        continue;
      }
      Group current = std::move(*next);
      groups_.erase(next);
      absorb(current);
      check_limit();
      run_group(current);
    }
  }
  // Takes in the groups that are at the same instruction, waiting ones too.
  void absorb(Group &current) {
    bool any = false;
    for (size_t k = 0; k < groups_.size();)
      if (groups_[k].at == current.at) {
        current.threads.insert(current.threads.end(), groups_[k].threads.begin(), groups_[k].threads.end());
        groups_.erase(groups_.begin() + k);
        any = true;
      } else k++;
    if (any) std::sort(current.threads.begin(), current.threads.end());
  }
  [[noreturn]] void cannot_go_on() {
    std::string text = "kernel " + kernel_.name + ": threads can never meet:";
    for (const auto &g : groups_)
      text += " [" + std::to_string(g.threads.size()) + " threads wait at: " + kernel_.code[g.at].text + "]";
    for (const auto &[id, state] : barriers_)
      text += " [" + std::to_string(state.arrived.size()) +
              " threads wait at: " + kernel_.code[state.arrived[0].at].text + "]";
    throw Fault(LAUNCH_FAILED, text);
  }
  // Lets the threads of one complete barrier go on; false if there is none.
  bool release_barrier() {
    for (auto it = barriers_.begin(); it != barriers_.end(); ++it) {
      const BarrierState &state = it->second;
      const size_t expected = state.expected >= 0 ? (size_t)state.expected : live_;
      if (state.arrived.size() < expected) continue;
      reduce_at_barrier(state);
      std::map<uint32_t, Threads> by_place;
      Threads threads;
      for (const auto &a : state.arrived) {
        by_place[a.at + 1].push_back(a.thread);
        threads.push_back(a.thread);
      }
      if (race_) race_->barrier(threads, threads.size() == live_);
      barriers_.erase(it);
      add_groups(by_place);
      return true;
    }
    return false;
  }
  void reduce_at_barrier(const BarrierState &state) {  // bar.red; mode: BarrierMode
    const auto instruction = [&](const Arrival &a) -> const Instruction & { return kernel_.code[a.at]; };
    size_t yes = 0;
    for (const auto &a : state.arrived) {
      const Instruction &i = instruction(a);
      if (i.mode) yes += ((block_.reg(i.src[2])[a.thread] & 1) != 0) != i.source_negated;
    }
    for (const auto &a : state.arrived) {
      const Instruction &i = instruction(a);
      if (!i.mode) continue;
      const bool result = i.mode == BARRIER_AND ? yes == state.arrived.size() : yes > 0;
      block_.reg(i.dst[0])[a.thread] = i.mode == BARRIER_POPC ? yes : result;
    }
  }

  // Runs a group until it ends, waits or splits.
  void run_group(Group &current) {
    uint32_t at = current.at;
    set_active(current.threads);
    const Instruction *code = kernel_.code.data();
    for (;;) {
      const Instruction &i = code[at];
      if (i.leader && !groups_.empty()) {
        current.at = at;
        if (somebody_is_behind(at)) {
          groups_.push_back(std::move(current));
          return;
        }
        absorb(current);
        set_active(current.threads);
      }
      switch (i.kind) {
        case NORMAL:
          if (i.guard < 0) execute(i);
          else {
            taken_.clear();
            for (const uint16_t t : current.threads)
              if (guard_holds(i, t)) taken_.push_back(t);
            if (!taken_.empty()) {
              set_active(taken_);
              execute(i);
              set_active(current.threads);
            }
          }
          at++;
          break;
        case BRANCH:
          if (i.guard >= 0) {
            split_by_guard(i, current.threads);
            if (!taken_.empty() && !others_.empty()) {
              add_group(i.target, taken_);
              add_group(at + 1, others_);
              return;
            }
            if (taken_.empty()) {
              at++;
              break;
            }
          }
          if ((uint32_t)i.target <= at) check_limit();
          at = i.target;
          break;
        case BRANCH_TABLE: branch_by_table(i, at, current); return;
        case EXIT:
          split_by_guard(i, current.threads);
          exit_threads(taken_);
          if (others_.empty()) return;
          current.threads = others_;
          set_active(current.threads);
          at++;
          break;
        case BARRIER:
          split_by_guard(i, current.threads);
          arrive(i, at);
          if (others_.empty()) return;
          current.threads = others_;
          set_active(current.threads);
          at++;
          break;
        case WARP:
          if (!run_warp(i, at, current)) return;
          at++;
          break;
      }
    }
  }
  bool somebody_is_behind(uint32_t at) const {
    return std::any_of(groups_.begin(), groups_.end(), [at](const Group &g) { return g.at < at && !g.waits; });
  }
  void branch_by_table(const Instruction &i, uint32_t at, const Group &current) {
    const uint64_t *index = block_.reg(i.src[0]);
    std::map<uint32_t, Threads> by_place;
    for (const uint16_t t : current.threads) {
      const uint32_t k = (uint32_t)index[t];
      if (!guard_holds(i, t)) by_place[at + 1].push_back(t);
      else if (k < i.targets.size()) by_place[i.targets[k]].push_back(t);
      else throw Fault(LAUNCH_FAILED, "kernel " + kernel_.name + ": branch table index out of range");
    }
    add_groups(by_place);
  }
  void exit_threads(const Threads &threads) {
    if (threads.empty()) return;
    for (const uint16_t t : threads) block_.live[t >> 5] &= ~(1u << (t & 31));
    live_ -= threads.size();
    for (auto &g : groups_) g.waits = false;  // nobody waits for a thread that has exited
  }
  // The threads in taken_ come to a barrier. A barrier for a number of threads opens when they are there.
  void arrive(const Instruction &i, uint32_t at) {
    bool complete = false;
    for (const uint16_t t : taken_) {
      BarrierState &state = barriers_[block_.reg(i.src[0])[t]];
      if (i.src[1] >= 0) state.expected = (int)block_.reg(i.src[1])[t];
      state.arrived.push_back({t, at});
      complete |= state.expected >= 0 && state.arrived.size() >= (size_t)state.expected;
    }
    if (complete) release_barrier();
  }
  // Runs a warp instruction for the warps of which all lanes are there. False: the group was split.
  bool run_warp(const Instruction &i, uint32_t at, Group &current) {
    split_by_guard(i, current.threads);
    if (taken_.empty()) return true;
    if (i.mask >= 0) {
      std::vector<uint32_t> here(block_.live.size(), 0), wanted(block_.live.size(), 0);
      const uint64_t *mask = block_.reg(i.mask);
      for (const uint16_t t : taken_) {
        here[t >> 5] |= 1u << (t & 31);
        wanted[t >> 5] |= (uint32_t)mask[t];
      }
      Threads complete, waiting;
      for (const uint16_t t : taken_) {
        const uint32_t w = t >> 5;
        ((wanted[w] & block_.live[w] & ~here[w]) == 0 ? complete : waiting).push_back(t);
      }
      if (!waiting.empty()) {
        groups_.push_back({at, std::move(waiting), true});
        if (!complete.empty()) {
          set_active(complete);
          execute(i);
        }
        complete.insert(complete.end(), others_.begin(), others_.end());
        std::sort(complete.begin(), complete.end());
        add_group(at + 1, std::move(complete));
        return false;
      }
    }
    set_active(taken_);
    execute(i);
    set_active(current.threads);
    return true;
  }
  void check_limit() const {
    if (count_ > max_instructions())
      throw Fault(LAUNCH_TIMEOUT, "kernel " + kernel_.name + ": stopped after " + std::to_string(count_) +
                                      " thread-instructions (CUDASIM_MAX_INS)");
  }
};

}  // namespace

uint64_t instructions_run() { return total_instructions; }

int run_kernel(const Kernel &kernel, Extent grid, Extent block, uint32_t dynamic_shared, const uint8_t *parameters,
               bool check_races, std::string &message) {
  if (!kernel.error.empty()) {
    message = "kernel " + kernel.name + ": " + kernel.error;
    return NOT_SUPPORTED;
  }
  FloatMode mode;
  try {
    Runner(kernel, check_races).run(grid, block, dynamic_shared, parameters);
  } catch (const Fault &fault) {
    message = fault.what();
    return fault.code;
  } catch (const std::exception &e) {
    message = "kernel " + kernel.name + ": " + e.what();
    return UNKNOWN;
  }
  return 0;
}

}  // namespace sim
