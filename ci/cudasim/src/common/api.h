// What the libraries of the simulator show to others, and the functions that libcublas and libcurand here take from
// libcudasim.
#pragma once
#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

API void cudasim_count(const char *counter);                     // one more
API void cudasim_note(const char *text);                         // into the log and the trace
API void cudasim_warn(const char *text);                         // on stderr, unless CUDASIM_QUIET is set
API int cudasim_is_device(const void *pointer, uint64_t bytes);  // all of it in one allocation on the device
API void cudasim_stream_flush(void *stream);                     // runs what the stream depends on
