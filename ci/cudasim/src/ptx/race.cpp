// See race.h.
#include "ptx/race.h"
#include "ptx/handlers.h"
#include <algorithm>

namespace sim {
namespace {

bool touches_memory(const Instruction &i) { return i.effect == READS || i.effect == WRITES || i.effect == ATOMIC; }
uint64_t low_bytes(uint64_t value, uint32_t count) { return count < 8 ? value & ((1ull << 8 * count) - 1) : value; }

}  // namespace

RaceCheck::RaceCheck(const Block &block)
    : block_(block),
      shared_pages_(block.shared_bytes / PAGE + 1),
      fenced_(block.threads),
      released_(block.threads),
      acquired_(block.threads) {}
void RaceCheck::start_block() {
  if (!starts_.empty()) starts_.back().released = last_release_;
  seen_by_all_ = now_;
  tick();
  block_start_ = now_;
  const Extent at = block_.index, grid = block_.grid;
  starts_.push_back({now_, 0, at.x + grid.x * (at.y + (uint64_t)grid.y * at.z)});
  only_warps_ = true;
  if (last_fence_) {
    std::fill(fenced_.begin(), fenced_.end(), 0);
    std::fill(released_.begin(), released_.end(), 0);
  }
  std::fill(acquired_.begin(), acquired_.end(), 0);
  last_fence_ = last_release_ = 0;
}
void RaceCheck::tick() {
  if (++now_ == 1u << 30)
    throw Fault(NOT_SUPPORTED, "kernel " + block_.kernel->name + ": too many barriers for the race check");
}

void RaceCheck::note(const Instruction &i) {
  if (i.effect == WARP_BARRIER || i.effect == WARP_EXCHANGE) return meet_in_warps(i);
  const bool is_fence = i.effect == FENCE || i.releases;
  if (is_fence) fence();
  if (touches_memory(i)) {
    const bool is_flag = i.is_strong || i.is_volatile;
    if (last_fence_ && is_flag && i.effect != READS) each(block_, [&](uint32_t t) { release(t); });
    touch(i);
    if (is_flag && i.effect != WRITES) each(block_, [&](uint32_t t) { acquire(t); });
  }
  if (is_fence) tick();
}

// --- what puts accesses in order

// These threads have come together: what one of them has seen of the others, all have.
void RaceCheck::meet(What what, const std::vector<uint16_t> &threads, Range others) {
  std::vector<uint32_t> most(others.last - others.first, 0);
  uint8_t acquired = 0;
  for (const uint16_t t : threads) {
    const uint32_t *row = seen(what, t) + others.first;
    for (size_t u = 0; u < most.size(); u++) most[u] = std::max(most[u], row[u]);
    acquired |= acquired_[t];
  }
  for (const uint16_t t : threads) most[t - others.first] = now_;
  for (const uint16_t t : threads) {
    std::copy(most.begin(), most.end(), seen(what, t) + others.first);
    if (what == WRITES_SEEN) acquired_[t] = acquired;
  }
}
void RaceCheck::barrier(const std::vector<uint16_t> &threads, bool of_all) {
  if (of_all) {  // also after what those did that have exited
    seen_by_all_ = now_;
    only_warps_ = true;
    std::fill(acquired_.begin(), acquired_.end(), *std::max_element(acquired_.begin(), acquired_.end()));
  } else {
    start_clocks();
    only_warps_ = false;
    for (const What what : {WRITES_SEEN, READS_SEEN}) meet(what, threads, {0, block_.threads});
  }
  tick();
}
void RaceCheck::meet_in_warps(const Instruction &i) {
  start_clocks();
  const uint64_t *mask = block_.reg(i.mask);
  std::vector<uint32_t> here(block_.live.size(), 0);
  each(block_, [&](uint32_t t) { here[t >> 5] |= 1u << (t & 31); });
  std::vector<uint16_t> together;
  each(block_, [&](uint32_t t) {
    const uint32_t first = t & ~31u, last = std::min(first + 32, block_.threads);
    uint32_t &rest = here[t >> 5];
    if (!(rest >> (t & 31) & 1)) return;  // it was among those of a lower lane
    uint32_t lanes = rest & (uint32_t)mask[t];
    rest &= ~lanes;
    together.clear();
    for (; lanes; lanes &= lanes - 1) together.push_back(first + __builtin_ctz(lanes));
    const Range others = only_warps_ ? Range{first, last} : Range{0, block_.threads};
    meet(READS_SEEN, together, others);
    if (i.effect == WARP_BARRIER) meet(WRITES_SEEN, together, others);
  });
  tick();
}
void RaceCheck::fence() {
  each(block_, [&](uint32_t t) { fenced_[t] = now_; });
  last_fence_ = now_;
}
void RaceCheck::release(uint32_t thread) {
  last_release_ = last_fence_;  // for other blocks; a barrier may lie between the fences of many and the write of one
  if (!fenced_[thread]) return;
  start_clocks();
  const uint32_t *row = seen(WRITES_SEEN, thread);
  for (uint32_t u = 0; u < block_.threads; u++) released_[u] = std::max(released_[u], row[u]);
  released_[thread] = fenced_[thread];
}
void RaceCheck::acquire(uint32_t thread) {
  acquired_[thread] = true;
  if (!last_release_) return;
  start_clocks();
  only_warps_ = false;
  for (const What what : {WRITES_SEEN, READS_SEEN}) {
    uint32_t *row = seen(what, thread);
    for (uint32_t u = 0; u < block_.threads; u++) row[u] = std::max(row[u], released_[u]);
  }
}
const RaceCheck::Start &RaceCheck::start_of(Access a) const {
  const auto before = [](uint32_t time, const Start &start) { return time < start.time; };
  return *std::prev(std::upper_bound(starts_.begin(), starts_.end(), (uint32_t)a.time, before));
}
// Whether an access happens before what a thread does now.
bool RaceCheck::in_order(Access a, What what, uint32_t thread, bool in_shared) {
  if (a.time < block_start_) {  // another block
    if (in_shared || a.time == 0) return true;
    return acquired_[thread] && a.time <= start_of(a).released;
  }
  if (a.thread == thread || a.time <= seen_by_all_) return true;
  return !seen_[what].empty() && a.time <= seen(what, thread)[a.thread];
}

// --- accesses

void RaceCheck::touch(const Instruction &i) {
  if (i.space == LOCAL || i.space == PARAM || i.space == CONST) return;  // nobody else's, or read only
  const Block &b = block_;
  const uint32_t width = size_of(i.type), bytes = width * i.count;
  const uint64_t *addresses = b.reg(i.src[0]);
  Access access{};
  access.time = now_;
  access.compares = i.effect == ATOMIC && i.mode == ATOMIC_CAS;
  access.at = &i - b.kernel->code.data();
  each(b, [&](uint32_t t) {
    const uint64_t address = addresses[t] + i.immediate + b.base(i.space, t), offset = address - (uint64_t)b.shared;
    const bool in_shared = i.space != GLOBAL && offset < b.shared_bytes;
    if (address % bytes || (in_shared ? offset + bytes > b.shared_bytes : i.space == SHARED)) return;  // a fault
    if (b.local && address - (uint64_t)b.local < b.local_bytes * b.stride) return;
    if (address - (uint64_t)b.parameters < b.parameter_bytes) return;
    access.thread = t;
    // By PTX volatile ones are strong. In shared memory they are how one did without __syncwarp(), which is a race.
    access.strong = i.is_strong || (i.is_volatile && !in_shared);
    Page &page = in_shared ? shared_pages_[offset / PAGE] : global_page(address);
    if (page.grain == 0 || width < page.grain) refine(page, width);
    const uint64_t place = in_shared ? offset : address;
    Cell *cell = &page.cells[place % PAGE / page.grain];
    for (uint32_t k = 0; k < bytes; k += page.grain, cell++) {
      uint64_t value = 0;
      if (i.effect == WRITES) value = low_bytes(b.reg(i.src[1 + k / width])[t] >> 8 * (k % width), page.grain);
      visit(*cell, access, i, place + k, in_shared, value);
    }
  });
}
RaceCheck::Page &RaceCheck::global_page(uint64_t address) {
  if (address / PAGE != last_number_) {
    last_number_ = address / PAGE;
    last_page_ = &global_pages_[last_number_];
  }
  return *last_page_;
}
// Cuts the cells of a page into smaller ones.
void RaceCheck::refine(Page &page, uint32_t grain) {
  std::vector<Cell> cells(PAGE / grain);
  if (page.grain) {
    const uint32_t parts = page.grain / grain;
    for (size_t k = 0; k < cells.size(); k++) {
      cells[k] = page.cells[k / parts];
      cells[k].value = low_bytes(cells[k].value >> 8 * grain * (k % parts), grain);
    }
  }
  page = {grain, std::move(cells)};
}
// Compares an access with those before it, and keeps it.
void RaceCheck::visit(Cell &cell, Access access, const Instruction &i, uint64_t place, bool in_shared, uint64_t value) {
  const auto races = [&](Access before, What what = WRITES_SEEN) {
    return !(before.strong && access.strong) && !in_order(before, what, access.thread, in_shared);
  };
  const bool reads = i.effect == READS;
  const char *after_write = reads ? "read-after-write" : "write-after-write";
  const bool is_same = i.effect == WRITES && value == cell.value;  // many threads set one flag: that ends in one way
  if (!is_same && races(cell.write)) report(after_write, cell.write, access, place, in_shared);
  for (const Access &before : cell.strong_writes)
    if (!(reads && before.compares) && races(before)) report(after_write, before, access, place, in_shared);
  if (!reads && !access.compares)
    for (const Access &before : cell.reads)
      if (races(before, READS_SEEN)) report("write-after-read", before, access, place, in_shared);

  if (reads) return keep(cell.reads, READS_SEEN, access, in_shared);
  if (access.strong) return keep(cell.strong_writes, WRITES_SEEN, access, in_shared);
  cell = {};  // what races with accesses before this one races with this one too
  cell.write = access;
  cell.value = value;
}
void RaceCheck::keep(Access (&slots)[2], What what, Access access, bool in_shared) {
  for (Access &slot : slots)
    if (in_order(slot, what, access.thread, in_shared)) {
      slot = access;
      return;
    }
  const auto warp = [](Access a) { return a.thread >> 5; };
  if (warp(slots[0]) == warp(slots[1]) && warp(slots[0]) != warp(access)) slots[1] = access;
}

// --- the message

std::string RaceCheck::describe(Access a) const {
  const Extent grid = block_.grid;
  const uint64_t number = start_of(a).number;
  const auto text = [](uint64_t n) { return std::to_string(n); };
  return "thread " + text(a.thread) + " of block (" + text(number % grid.x) + "," + text(number / grid.x % grid.y) +
         "," + text(number / grid.x / grid.y) + ") at [" + block_.kernel->code[a.at].text + "]";
}
void RaceCheck::report(const char *kind, Access before, Access after, uint64_t place, bool in_shared) const {
  char where[80];
  if (in_shared) snprintf(where, sizeof where, "byte %llu of shared memory", (unsigned long long)place);
  else snprintf(where, sizeof where, "address 0x%llx", (unsigned long long)place);
  throw Fault(LAUNCH_FAILED, "kernel " + block_.kernel->name + ": " + kind + " hazard at " + where +
                                 ": nothing puts these in an order: " + describe(before) + ", and " + describe(after));
}

}  // namespace sim
