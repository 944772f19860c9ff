// What the lowering (lower_*.cpp) takes from the handlers (op_*.cpp): for each PTX instruction a function that returns
// the handler for a type, or null where there is none. Fields of Instruction are used as the comments say.
#pragma once
#include "ptx/program.h"

namespace sim {

// op_arithmetic.cpp
Handler add_handler(Type);
Handler sub_handler(Type);
Handler mul_handler(Type);  // .lo of integers
Handler mul_wide_handler(Type);
Handler mul_hi_handler(Type);
Handler mad_handler(Type);  // .lo of integers
Handler mad_wide_handler(Type);
Handler mad_hi_handler(Type);
Handler fma_handler(Type);
Handler mul24_handler(bool is_signed);  // mode: 1 for .hi; src[2] is added where it is given
Handler div_handler(Type);
Handler rem_handler(Type);
Handler min_handler(Type, bool nan_wins, bool flush);
Handler max_handler(Type, bool nan_wins, bool flush);
Handler abs_handler(Type, bool flush);
Handler neg_handler(Type, bool flush);
Handler copysign_handler(Type);
Handler rcp_handler(Type);
Handler sqrt_handler(Type);
Handler rsqrt_handler(Type);
Handler sin_handler(Type);
Handler cos_handler(Type);
Handler ex2_handler(Type);
Handler lg2_handler(Type);
Handler tanh_handler(Type);
Handler saturate_handler(Type);  // clamps dst[0] to [0, 1]
enum CarryMode : uint8_t { USE_CARRY = 1, SET_CARRY = 2, SUBTRACT = 4 };
Handler add_carry_handler(Type);  // mode: CarryMode bits
Handler mad_carry_handler(Type);  // mode: CarryMode bits; mode2: 1 for .hi
Handler sad_handler(Type);
Handler dp4a_handler();  // mode: bit 0 if the first operand is signed, bit 1 for the second

// op_bits.cpp
Handler mov_handler();
Handler join_handler();   // d = {a, b, ...}: count elements of width bytes
Handler split_handler();  // {a, b, ...} = s
Handler and_handler(Type);
Handler or_handler(Type);
Handler xor_handler(Type);
Handler not_handler(Type);
Handler cnot_handler(Type);
Handler shl_handler(Type);
Handler shr_handler(Type);
Handler shf_handler();  // mode: bit 0 right, bit 1 wrap
Handler bfe_handler(Type);
Handler bfi_handler(Type);
Handler bfind_handler(Type);  // mode: 1 for .shiftamt
Handler brev_handler(Type);
Handler popc_handler(Type);
Handler clz_handler(Type);
Handler prmt_handler();  // mode: PermuteMode
enum PermuteMode : uint8_t { BY_INDEX, FORWARD_4, BACKWARD_4, REPLICATE_8, CLAMP_LEFT, CLAMP_RIGHT, REPLICATE_16 };
Handler lop3_handler();  // immediate: the truth table

// op_compare.cpp
enum Comparison { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_, NO_COMPARISON };
enum Combination : uint8_t { ALONE, WITH_AND, WITH_OR, WITH_XOR };  // with the predicate src[2]
Handler setp_handler(Comparison, Type, Combination);                // mode: Comparison; mode2: Combination
Handler set_handler(Type source, Combination);                      // the same
Handler selp_handler();
Handler slct_handler(Type condition);
Handler testp_handler(Type);  // mode: TestMode
enum TestMode : uint8_t { FINITE, INFINITE, NUMBER, NOT_A_NUMBER, NORMAL_NUMBER, SUBNORMAL };

// op_convert.cpp
enum IntegerRounding : uint8_t { NOT_TO_INTEGER, TO_NEAREST_INTEGER, TOWARDS_ZERO, TO_FLOOR, TO_CEILING };
Handler cvt_handler(Type to, Type from);  // mode: IntegerRounding
Handler cvt_pair_handler(Type to);        // two float32 to a pair

// op_memory.cpp
Handler load_handler(Type);   // dst[0..count) = [src[0] + immediate]
Handler store_handler(Type);  // [src[0] + immediate] = src[1..count]
Handler cvta_handler(Space, bool to_space);
Handler isspacep_handler();
enum AtomicOp {
  ATOMIC_ADD,
  ATOMIC_MIN,
  ATOMIC_MAX,
  ATOMIC_AND,
  ATOMIC_OR,
  ATOMIC_XOR,
  ATOMIC_EXCH,
  ATOMIC_CAS,
  ATOMIC_INC,
  ATOMIC_DEC,
  NO_ATOMIC
};
Handler atomic_handler(AtomicOp, Type);  // dst[0] may be -1; mode: AtomicOp

enum BarrierMode : uint8_t { BARRIER_SYNC, BARRIER_POPC, BARRIER_AND, BARRIER_OR };  // mode of bar: run.cpp

// op_warp.cpp: the scheduler calls them once all lanes of `mask` are there
enum ShuffleMode : uint8_t { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, SHUFFLE_INDEX };
enum VoteMode : uint8_t { VOTE_ALL, VOTE_ANY, VOTE_UNIFORM, VOTE_BALLOT };
Handler shuffle_handler();  // mode: ShuffleMode
Handler vote_handler();     // mode: VoteMode
Handler match_handler();    // mode: 1 for .all; width: bytes compared
Handler reduce_handler();   // mode: AtomicOp
Handler active_mask_handler();
Handler elect_handler();
Handler warp_barrier_handler();

// op_system.cpp
Handler nop_handler();
Handler clock_handler();   // width: 4 for the low half
Handler printf_handler();  // src: format, arguments
Handler assert_handler();
Handler trap_handler();

}  // namespace sim
