// The environment variables CUDASIM_*, read once. cudasim/patching.py refuses values that are no numbers.
#pragma once
#include <cstdint>

namespace sim {

bool quiet();                       // CUDASIM_QUIET: no messages on stderr
bool tracing();                     // CUDASIM_TRACE: every launch, copy and wait on stderr
bool late();                        // CUDASIM_ASYNC: work runs when something waits for it
bool race_check();                  // CUDASIM_RACECHECK: look for races between the threads of a kernel
uint64_t device_bytes();            // CUDASIM_MEM
int poison();                       // CUDASIM_POISON: the byte that fresh memory holds; negative for none
uint64_t max_instructions();        // CUDASIM_MAX_INS: thread-instructions after which a kernel is stopped
int compute_capability();           // CUDASIM_CC, e.g. 75 for 7.5
int device_count();                 // CUDASIM_DEVICES
constexpr int MULTIPROCESSORS = 4;  // few, so that CuPy chooses small grids

// Prints "cudasim: ..." on stderr unless CUDASIM_QUIET is set.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace sim
