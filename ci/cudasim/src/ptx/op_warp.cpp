// Handlers of warp instructions. The scheduler calls them when all lanes that take part have come.
#include "ptx/block.h"
#include "ptx/handlers.h"
#include <algorithm>

namespace sim {
namespace {

struct Warp {
  uint32_t first;   // thread number of lane 0
  uint32_t active;  // a bit per active lane
};
template <class F>
void each_warp(const Block &b, F f) {
  std::vector<uint32_t> active((b.threads + 31) / 32, 0);
  each(b, [&](uint32_t t) { active[t >> 5] |= 1u << (t & 31); });
  for (uint32_t w = 0; w < active.size(); w++)
    if (active[w]) f(Warp{w * 32, active[w]});
}
template <class F>
void each_lane(uint32_t lanes, F f) {
  for (int lane = 0; lane < 32; lane++)
    if (lanes >> lane & 1) f(lane);
}

struct Source {
  int lane;
  bool in_range;
};
Source shuffle_source(uint8_t mode, int lane, int by, uint32_t control) {
  const int segment = (control >> 8) & 31, clamp = control & 31;
  const int low = lane & segment, limit = low | (clamp & ~segment);
  Source from{};
  switch (mode) {
    case SHUFFLE_UP:
      from.lane = lane - by;
      from.in_range = from.lane >= limit;
      break;
    case SHUFFLE_DOWN:
      from.lane = lane + by;
      from.in_range = from.lane <= limit;
      break;
    case SHUFFLE_XOR:
      from.lane = lane ^ by;
      from.in_range = from.lane <= limit;
      break;
    default: from.lane = low | (by & ~segment); from.in_range = from.lane <= limit;
  }
  if (!from.in_range) from.lane = lane;
  return from;
}
void shuffle(Block &b, const Instruction &i) {
  const uint64_t *x = b.reg(i.src[0]), *y = b.reg(i.src[1]), *control = b.reg(i.src[2]);
  uint64_t *d = b.reg_or_null(i.dst[0]), *p = b.reg_or_null(i.dst[1]);
  each_warp(b, [&](Warp w) {
    uint64_t before[32];  // d may be x
    std::copy_n(x + w.first, 32, before);
    each_lane(w.active, [&](int lane) {
      const uint32_t t = w.first + lane;
      const Source from = shuffle_source(i.mode, lane, (int)(y[t] & 31), (uint32_t)control[t]);
      // a lane that takes no part has no value: PTX leaves the result undefined, here it is the own value
      const bool takes_part = w.active >> from.lane & 1;
      if (p) p[t] = from.in_range;
      if (d) d[t] = (uint32_t)before[takes_part ? from.lane : lane];
    });
  });
}
void vote(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *p = b.reg(i.src[0]), *mask = b.reg_or_null(i.mask);
  each_warp(b, [&](Warp w) {
    uint32_t yes = 0;
    each_lane(w.active, [&](int lane) {
      if ((p[w.first + lane] & 1) != i.source_negated) yes |= 1u << lane;
    });
    each_lane(w.active, [&](int lane) {
      const uint32_t t = w.first + lane;
      const uint32_t asked = mask ? (uint32_t)mask[t] & w.active : w.active, ballot = yes & asked;
      switch (i.mode) {
        case VOTE_ALL: d[t] = ballot == asked; break;
        case VOTE_ANY: d[t] = ballot != 0; break;
        case VOTE_UNIFORM: d[t] = ballot == asked || ballot == 0; break;
        default: d[t] = ballot;
      }
    });
  });
}
void match(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]), *p = b.reg_or_null(i.dst[1]);
  const uint64_t *x = b.reg(i.src[0]), *mask = b.reg(i.mask);
  const uint64_t significant = i.width == 8 ? ~0ull : 0xffffffffull;
  each_warp(b, [&](Warp w) {
    uint64_t value[32];
    std::copy_n(x + w.first, 32, value);
    each_lane(w.active, [&](int lane) {
      const uint32_t t = w.first + lane, asked = (uint32_t)mask[t] & w.active;
      uint32_t equal = 0;
      each_lane(asked, [&](int other) {
        if (((value[other] ^ value[lane]) & significant) == 0) equal |= 1u << other;
      });
      const bool all = equal == asked;
      d[t] = !i.mode ? equal : all ? asked : 0;
      if (i.mode && p) p[t] = all;
    });
  });
}
uint32_t reduce_two(uint8_t op, bool is_signed, uint32_t x, uint32_t y) {
  switch (op) {
    case ATOMIC_ADD: return x + y;
    case ATOMIC_AND: return x & y;
    case ATOMIC_OR: return x | y;
    case ATOMIC_XOR: return x ^ y;
    case ATOMIC_MIN: return is_signed ? (uint32_t)std::min((int32_t)x, (int32_t)y) : std::min(x, y);
    default: return is_signed ? (uint32_t)std::max((int32_t)x, (int32_t)y) : std::max(x, y);
  }
}
void reduce(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  const uint64_t *x = b.reg(i.src[0]), *mask = b.reg(i.mask);
  each_warp(b, [&](Warp w) {
    uint64_t value[32];
    std::copy_n(x + w.first, 32, value);
    each_lane(w.active, [&](int lane) {
      const uint32_t t = w.first + lane;
      uint32_t rest = (uint32_t)mask[t] & w.active, result = 0;
      if (rest) {
        result = (uint32_t)value[__builtin_ctz(rest)];
        rest &= rest - 1;
      }
      each_lane(rest, [&](int other) { result = reduce_two(i.mode, i.type == S32, result, (uint32_t)value[other]); });
      d[t] = result;
    });
  });
}
void active_mask(Block &b, const Instruction &i) {
  uint64_t *d = b.reg(i.dst[0]);
  each_warp(b, [&](Warp w) { each_lane(w.active, [&](int lane) { d[w.first + lane] = w.active; }); });
}
void elect(Block &b, const Instruction &i) {
  uint64_t *d = b.reg_or_null(i.dst[0]), *p = b.reg_or_null(i.dst[1]);
  each_warp(b, [&](Warp w) {
    const int leader = __builtin_ctz(w.active);
    each_lane(w.active, [&](int lane) {
      if (d) d[w.first + lane] = leader;
      if (p) p[w.first + lane] = lane == leader;
    });
  });
}
void warp_barrier(Block &, const Instruction &) {}  // to have come is all

}  // namespace

Handler shuffle_handler() { return shuffle; }
Handler vote_handler() { return vote; }
Handler match_handler() { return match; }
Handler reduce_handler() { return reduce; }
Handler active_mask_handler() { return active_mask; }
Handler elect_handler() { return elect; }
Handler warp_barrier_handler() { return warp_barrier; }

}  // namespace sim
