// Counters of calls, and the log of launches, copies and waits.
#pragma once
#include <cstdint>
#include <string>

namespace sim {

// cudasim.counters() shows them under the names in counters.cpp.
enum Counter {
  KERNEL_LAUNCH,
  H2D,
  D2H,
  D2D,
  H2H,
  H2D_BYTES,
  D2H_BYTES,
  D2D_BYTES,
  MEMSET,
  DEVICE_SYNC,
  STREAM_SYNC,
  EVENT_SYNC,
  EVENT_RECORD,
  STREAM_WAIT_EVENT,
  MALLOC,
  FREE,
  HOST_ALLOC,
  MODULE_LOAD,
  GEMM,
  BLAS_OTHER,
  CURAND,
  EVENT_QUERY,
  STREAM_CREATE,
  COUNTERS
};
void count(Counter, uint64_t by = 1);

bool noting();  // whether somebody wants notes; they cost time to write
void note(const std::string &);

}  // namespace sim
