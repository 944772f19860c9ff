// Work of streams. By default it runs at once. With CUDASIM_ASYNC=1 it waits in a queue for each stream until something
// waits for it: the latest moment that CUDA allows, at which a missing wait shows.
#pragma once
#include <cstdint>
#include <functional>

namespace sim {

// A place in the work of a stream: everything up to `sequence`.
struct Mark {
  void *stream = nullptr;
  uint64_t sequence = 0;
};

// Adds work to a stream; it runs after `after` too, if given. Empty work is only a place to wait for.
Mark enqueue(void *stream, std::function<void()> work, const Mark *after = nullptr);
void run_up_to(const Mark &);
bool is_done(const Mark &);
bool poll(const Mark &);  // whether it was done; if not, runs one piece of work, so that asking again and again ends
Mark last_of(void *stream);
void run_stream(void *stream);  // all of its work; for the default stream also that of the streams it waits for
void run_everything();
void set_blocking(void *stream, bool);  // whether it and the default stream wait for each other

}  // namespace sim
