// Error codes: those of the runtime API (cudaError) are also those of the driver API (CUresult).
#pragma once
#include <string>

namespace sim {

enum Error {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_CONFIGURATION = 9,
  INVALID_DEVICE_FUNCTION = 98,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  NO_BINARY_FOR_GPU = 209,
  INVALID_PTX = 218,
  FILE_NOT_FOUND = 301,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  LAUNCH_OUT_OF_RESOURCES = 701,
  OPERATION_NOT_SUPPORTED = 801
};

// What a function of the runtime API returns: remembered for cudaGetLastError unless it means "not yet".
int result(int error);

// A fault of a kernel is sticky: from then on every call fails, as on a GPU. 0 if there is none.
int sticky_error();
void set_sticky_error(int code, const std::string &message);
void set_message(const std::string &);  // for cudasim.last_error(), without making it sticky

}  // namespace sim

#define RETURN_IF_STICKY()                                          \
  do {                                                              \
    if (const int e_ = sim::sticky_error()) return sim::result(e_); \
  } while (0)
