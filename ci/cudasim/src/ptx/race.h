// The race check (CUDASIM_RACECHECK): finds threads that touch the same memory, one of them writing, with nothing that
// puts the two in an order.
//
// What a thread does before a barrier happens before what any thread does after it (Lamport 1978). Each access is kept
// with its time, a count of barriers and the like, and each thread knows up to which time it has seen every other one:
// vector clocks, as in FastTrack (Flanagan and Freund 2009). Blocks run one after another, so a time tells the block.
#pragma once
#include "ptx/block.h"
#include <unordered_map>

namespace sim {

struct Access {
  uint32_t time : 30;     // 0: there was none
  uint32_t strong : 1;    // two of those are no race: atomics, mostly
  uint32_t compares : 1;  // compare and swap: finds out itself that what was read before does not hold any more
  uint32_t thread : 10, at : 22;
};
struct Cell {  // what is known of a few bytes
  Access write;
  Access strong_writes[2], reads[2];  // of two threads; of two warps where there are any
  uint64_t value;                     // that `write` has left
};

class RaceCheck {
 public:
  explicit RaceCheck(const Block &);
  void start_block();
  void note(const Instruction &);  // what the active threads are about to do
  void barrier(const std::vector<uint16_t> &threads, bool of_all);

 private:
  struct Range {
    uint32_t first, last;  // the last one is not in it
  };
  struct Start {  // of a block
    uint32_t time, released;
    uint64_t number;
  };
  struct Page {
    uint32_t grain = 0;  // bytes of a cell: as many as the narrowest access so far had
    std::vector<Cell> cells;
  };
  static constexpr uint64_t PAGE = 1024;

  const Block &block_;
  std::vector<Page> shared_pages_;
  std::unordered_map<uint64_t, Page> global_pages_;
  uint64_t last_number_ = ~0ull;
  Page *last_page_ = nullptr;

  uint32_t now_ = 0;
  uint32_t block_start_ = 0;
  std::vector<Start> starts_;  // of all blocks so far
  // Shuffles and votes say nothing about memory, but a lane has read what it read when the others go on: after those a
  // lane has seen the reads of the others, though not their writes.
  enum What { WRITES_SEEN, READS_SEEN };
  uint32_t seen_by_all_ = 0;       // what this block has done up to then
  std::vector<uint32_t> seen_[2];  // [thread, other]: up to which time; empty while all have seen the same
  bool only_warps_ = true;         // nobody has seen more of other warps than all have
  // Fences. What a thread did before one is released by its next strong write. A strong read acquires all that was
  // released, by way of whatever address: so no race is seen where there is none.
  std::vector<uint32_t> fenced_, released_;  // [thread]: up to which time
  std::vector<uint8_t> acquired_;            // [thread]: whether it has, in this block
  uint32_t last_fence_ = 0, last_release_ = 0;

  void tick();
  uint32_t *seen(What what, uint32_t thread) { return seen_[what].data() + (size_t)thread * block_.threads; }
  void start_clocks() {
    for (auto &clocks : seen_) clocks.resize((size_t)block_.threads * block_.threads);
  }
  void meet(What, const std::vector<uint16_t> &threads, Range others);
  void meet_in_warps(const Instruction &);
  void fence();
  void release(uint32_t thread);
  void acquire(uint32_t thread);
  const Start &start_of(Access) const;
  bool in_order(Access, What, uint32_t thread, bool in_shared);

  void touch(const Instruction &);
  Page &global_page(uint64_t address);
  static void refine(Page &, uint32_t grain);
  void visit(Cell &, Access, const Instruction &, uint64_t place, bool in_shared, uint64_t value);
  void keep(Access (&slots)[2], What, Access, bool in_shared);
  std::string describe(Access) const;
  [[noreturn]] void report(const char *kind, Access, Access, uint64_t place, bool in_shared) const;
};

}  // namespace sim
