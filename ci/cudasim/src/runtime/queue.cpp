#include "runtime/queue.h"
#include "common/api.h"
#include "common/settings.h"
#include "runtime/errors.h"
#include <deque>
#include <map>
#include <mutex>
#include <vector>

namespace sim {
namespace {

struct Work {
  std::function<void()> run;
  std::vector<Mark> after;
};
struct Queue {
  std::deque<Work> waiting;
  uint64_t done = 0, last = 0;  // sequence numbers
  bool blocking = true;
};

// Held while work runs, too: work of one stream may run that of another first. Queues of destroyed streams stay, since
// events may still name them.
std::recursive_mutex mutex;
std::map<void *, Queue> queues;
using Lock = std::lock_guard<std::recursive_mutex>;

void *key(void *stream) { return (uint64_t)stream <= 1 ? nullptr : stream; }  // 0 and 1 are the default stream
void run_locked(const Mark &mark) {
  Queue &q = queues[mark.stream];
  while (q.done < mark.sequence && !q.waiting.empty()) {
    const Work work = std::move(q.waiting.front());
    q.waiting.pop_front();
    for (const Mark &before : work.after) run_locked(before);
    if (work.run && !sticky_error()) work.run();
    q.done++;
  }
}

}  // namespace

Mark enqueue(void *stream, std::function<void()> run, const Mark *after) {
  stream = key(stream);
  if (!late()) {
    if (run) run();
    return {stream, 0};
  }
  Lock lock(mutex);
  Queue &q = queues[stream];
  Work work{std::move(run), {}};
  if (after) work.after.push_back(*after);
  if (!stream) {
    for (const auto &[other, queue] : queues)
      if (other && queue.blocking && queue.done < queue.last) work.after.push_back({other, queue.last});
  } else if (q.blocking) {
    const Queue &null = queues[nullptr];
    if (null.done < null.last) work.after.push_back({nullptr, null.last});
  }
  q.waiting.push_back(std::move(work));
  return {stream, ++q.last};
}
void run_up_to(const Mark &mark) {
  if (!late()) return;
  Lock lock(mutex);
  run_locked(mark);
}
bool is_done(const Mark &mark) {
  if (!late()) return true;
  Lock lock(mutex);
  return queues[mark.stream].done >= mark.sequence;
}
bool poll(const Mark &mark) {
  if (!late()) return true;
  Lock lock(mutex);
  const Queue &q = queues[mark.stream];
  if (q.done >= mark.sequence) return true;
  run_locked({mark.stream, q.done + 1});
  return false;
}
Mark last_of(void *stream) {
  if (!late()) return {key(stream), 0};
  Lock lock(mutex);
  return {key(stream), queues[key(stream)].last};
}
void run_stream(void *stream) {
  if (!late()) return;
  Lock lock(mutex);
  if (!key(stream))
    for (const auto &[other, queue] : queues)
      if (other && queue.blocking) run_locked({other, queue.last});
  run_locked(last_of(stream));
}
void run_everything() {
  if (!late()) return;
  Lock lock(mutex);
  for (const auto &[stream, queue] : queues) run_locked({stream, queue.last});
}
void set_blocking(void *stream, bool blocking) {
  Lock lock(mutex);
  queues[key(stream)].blocking = blocking;
}

}  // namespace sim

// cuBLAS and cuRAND run when called: first everything their stream depends on.
API void cudasim_stream_flush(void *stream) {
  if (!sim::late()) return;
  sim::Lock lock(sim::mutex);
  sim::run_locked(sim::enqueue(stream, nullptr));
}
