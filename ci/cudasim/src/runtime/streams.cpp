// Streams and events.
#include "runtime/streams.h"
#include "common/api.h"
#include "common/settings.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/queue.h"
#include <chrono>
#include <driver_types.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>

namespace sim {
namespace {

struct Stream {
  unsigned flags;
  int priority;
};
struct Record {  // one call of cudaEventRecord; work that is still queued keeps it alive
  Mark mark;
  double milliseconds = 0;
};
struct Event {
  unsigned flags;
  std::shared_ptr<Record> record;  // the last one; null before
};

std::mutex mutex;
using Lock = std::lock_guard<std::mutex>;
std::map<void *, std::unique_ptr<Stream>> streams;
std::map<void *, std::unique_ptr<Event>> events;

bool is_default(void *stream) { return (uintptr_t)stream <= 2; }
bool is_event(void *event) {
  Lock lock(mutex);
  return events.count(event) != 0;
}
std::shared_ptr<Record> record_of(void *event) {
  Lock lock(mutex);
  const auto it = events.find(event);
  return it == events.end() ? nullptr : it->second->record;
}
double now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

bool is_stream(void *stream) {
  if (is_default(stream)) return true;
  Lock lock(mutex);
  return streams.count(stream) != 0;
}

}  // namespace sim

using namespace sim;

API int sim_cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  RETURN_IF_STICKY();
  count(STREAM_CREATE);
  auto created = std::make_unique<Stream>(Stream{flags, priority});
  *stream = created.get();
  set_blocking(*stream, !(flags & cudaStreamNonBlocking));
  Lock lock(sim::mutex);
  streams[*stream] = std::move(created);
  return SUCCESS;
}
API int sim_cudaStreamCreateWithFlags(void **stream, unsigned flags) {
  return sim_cudaStreamCreateWithPriority(stream, flags, 0);
}
API int sim_cudaStreamCreate(void **stream) { return sim_cudaStreamCreateWithPriority(stream, 0, 0); }
API int sim_cudaStreamDestroy(void *stream) {
  run_stream(stream);
  Lock lock(sim::mutex);
  return streams.erase(stream) ? SUCCESS : result(INVALID_HANDLE);
}
API int sim_cudaStreamGetFlags(void *stream, unsigned *flags) {
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  Lock lock(sim::mutex);
  *flags = is_default(stream) ? 0 : streams[stream]->flags;
  return SUCCESS;
}
API int sim_cudaStreamGetPriority(void *stream, int *priority) {
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  Lock lock(sim::mutex);
  *priority = is_default(stream) ? 0 : streams[stream]->priority;
  return SUCCESS;
}
API int sim_cudaStreamSynchronize(void *stream) {
  count(STREAM_SYNC);
  note("stream_sync");
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  run_stream(stream);
  RETURN_IF_STICKY();
  return SUCCESS;
}
API int sim_cudaStreamQuery(void *stream) {
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  RETURN_IF_STICKY();
  return poll(last_of(stream)) ? SUCCESS : NOT_READY;
}
// Host functions run when called, after the stream's work.
API int sim_cudaStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data, unsigned) {
  run_stream(stream);
  function(stream, SUCCESS, data);
  return SUCCESS;
}
API int sim_cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  run_stream(stream);
  function(data);
  return SUCCESS;
}
API int sim_cudaStreamWaitEvent(void *stream, void *event, unsigned) {
  if (!is_stream(stream) || !is_event(event)) return result(INVALID_HANDLE);
  count(STREAM_WAIT_EVENT);
  if (const auto record = record_of(event)) enqueue(stream, nullptr, &record->mark);
  return SUCCESS;
}
API int sim_cudaStreamIsCapturing(void *, int *status) {
  *status = cudaStreamCaptureStatusNone;
  return SUCCESS;
}

API int sim_cudaEventCreateWithFlags(void **event, unsigned flags) {
  RETURN_IF_STICKY();
  auto created = std::make_unique<Event>(Event{flags, nullptr});
  *event = created.get();
  Lock lock(sim::mutex);
  events[*event] = std::move(created);
  return SUCCESS;
}
API int sim_cudaEventCreate(void **event) { return sim_cudaEventCreateWithFlags(event, 0); }
API int sim_cudaEventDestroy(void *event) {  // waits for nothing: what waits for the event already knows its mark
  Lock lock(sim::mutex);
  return events.erase(event) ? SUCCESS : result(INVALID_HANDLE);
}
API int sim_cudaEventRecord(void *event, void *stream) {
  if (!is_event(event) || !is_stream(stream)) return result(INVALID_HANDLE);
  count(EVENT_RECORD);
  const auto record = std::make_shared<Record>();
  record->mark = enqueue(stream, [record] { record->milliseconds = now(); });
  Lock lock(sim::mutex);
  const auto it = events.find(event);
  if (it == events.end()) return result(INVALID_HANDLE);
  it->second->record = record;
  return SUCCESS;
}
API int sim_cudaEventSynchronize(void *event) {
  if (!is_event(event)) return result(INVALID_HANDLE);
  count(EVENT_SYNC);
  note("event_sync");
  if (const auto record = record_of(event)) run_up_to(record->mark);
  RETURN_IF_STICKY();
  return SUCCESS;
}
API int sim_cudaEventQuery(void *event) {
  if (!is_event(event)) return result(INVALID_HANDLE);
  count(EVENT_QUERY);
  const auto record = record_of(event);
  return !record || poll(record->mark) ? SUCCESS : NOT_READY;
}
API int sim_cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
  const auto first = record_of(start), second = record_of(end);
  if (!first || !second) return result(INVALID_HANDLE);
  {
    Lock lock(sim::mutex);
    if ((events[start]->flags | events[end]->flags) & cudaEventDisableTiming) return result(INVALID_HANDLE);
  }
  if (!is_done(first->mark) || !is_done(second->mark)) return NOT_READY;
  *milliseconds = (float)(second->milliseconds - first->milliseconds);
  return SUCCESS;
}
