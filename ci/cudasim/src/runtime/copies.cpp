// Copies and memset.
#include "common/api.h"
#include "common/settings.h"
#include "runtime/counters.h"
#include "runtime/errors.h"
#include "runtime/memory.h"
#include "runtime/queue.h"
#include "runtime/streams.h"
#include <cstring>
#include <driver_types.h>
#include <memory>
#include <vector>

using namespace sim;

namespace {

struct Rows {  // of a two-dimensional copy; a plain one has one row
  char *start;
  size_t pitch;
};
struct Copy {
  Rows to, from;
  size_t width, height;
  int kind;
};

struct End {  // what is known of one end of a copy
  bool on_device = false, either = false, pinned = false, in_range = true;
};
End look_at(Rows rows, size_t width, size_t height) {
  End end;
  Allocation a;
  if (!find(rows.start, a)) return end;
  end.pinned = a.kind == Memory::PINNED;
  end.on_device = !end.pinned;
  end.either = end.pinned || a.kind == Memory::MANAGED;  // host and device may both name it
  end.in_range = a.contains((uint64_t)rows.start, (height - 1) * rows.pitch + width);
  return end;
}
void move(const Copy &c) {
  for (size_t row = 0; row < c.height; row++)
    memmove(c.to.start + row * c.to.pitch, c.from.start + row * c.from.pitch, c.width);
}

int run_copy(Copy c, void *stream, bool async) {
  static const char *const names[] = {"h2h", "h2d", "d2h", "d2d"};
  static const Counter counters[] = {H2H, H2D, D2H, D2D};
  static const Counter byte_counters[] = {COUNTERS, H2D_BYTES, D2H_BYTES, D2D_BYTES};
  RETURN_IF_STICKY();
  if (!c.width || !c.height) return SUCCESS;
  if (c.height > 1 && (c.width > c.to.pitch || c.width > c.from.pitch)) return result(INVALID_VALUE);
  const End to = look_at(c.to, c.width, c.height), from = look_at(c.from, c.width, c.height);
  if (!to.in_range || !from.in_range) return result(INVALID_VALUE);
  const int actual = (from.on_device ? 2 : 0) + (to.on_device ? 1 : 0);  // the numbers of cudaMemcpyKind
  if (c.kind == cudaMemcpyDefault) c.kind = actual;
  if (c.kind < 0 || c.kind > cudaMemcpyDeviceToDevice) return result(INVALID_VALUE);
  if (c.kind != actual && !to.either && !from.either) return result(INVALID_VALUE);

  count(counters[c.kind]);
  if (byte_counters[c.kind] != COUNTERS) count(byte_counters[c.kind], c.width * c.height);
  if (noting()) note(std::string("memcpy ") + names[c.kind] + " " + std::to_string(c.width * c.height));
  if (!late()) {
    move(c);
    return SUCCESS;
  }
  if (c.kind == cudaMemcpyHostToDevice && !from.pinned) {
    // The driver copies pageable memory to a buffer of its own before the call returns.
    const auto buffer = std::make_shared<std::vector<char>>(c.width * c.height);
    const Rows staged{buffer->data(), c.width};
    move({staged, c.from, c.width, c.height, c.kind});
    c.from = staged;
    const Mark mark = enqueue(stream, [c, buffer] { move(c); });
    if (!async) run_up_to(mark);
    return SUCCESS;
  }
  const Mark mark = enqueue(stream, [c] { move(c); });
  const bool waits = !async || c.kind == cudaMemcpyHostToHost || (c.kind == cudaMemcpyDeviceToHost && !to.pinned);
  if (waits) {
    run_up_to(mark);
    RETURN_IF_STICKY();
  }
  return SUCCESS;
}
int copy(void *to, const void *from, size_t bytes, int kind, void *stream = nullptr, bool async = false) {
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  return run_copy({{(char *)to, bytes}, {(char *)from, bytes}, bytes, 1, kind}, stream, async);
}
int copy_2d(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind,
            void *stream = nullptr, bool async = false) {
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  if (width > to_pitch || width > from_pitch) return result(INVALID_VALUE);
  return run_copy({{(char *)to, to_pitch}, {(char *)from, from_pitch}, width, height, kind}, stream, async);
}
int set_memory(void *p, int value, size_t bytes, void *stream) {
  RETURN_IF_STICKY();
  if (!is_stream(stream)) return result(INVALID_HANDLE);
  if (!bytes) return SUCCESS;
  if (!cudasim_is_device(p, bytes)) return result(INVALID_VALUE);
  count(MEMSET);
  if (noting()) note("memset " + std::to_string(bytes));
  enqueue(stream, [=] { memset(p, value, bytes); });
  return SUCCESS;
}

}  // namespace

API int sim_cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
API int sim_cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  return copy(to, from, bytes, kind, stream, true);
}
API int sim_cudaMemcpyPeer(void *to, int, const void *from, int, size_t bytes) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice);
}
API int sim_cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, void *stream) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, true);
}
API int sim_cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         int kind) {
  return copy_2d(to, to_pitch, from, from_pitch, width, height, kind);
}
API int sim_cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, int kind, void *stream) {
  return copy_2d(to, to_pitch, from, from_pitch, width, height, kind, stream, true);
}
API int sim_cudaMemset(void *p, int value, size_t bytes) { return set_memory(p, value, bytes, nullptr); }
API int sim_cudaMemsetAsync(void *p, int value, size_t bytes, void *stream) {
  return set_memory(p, value, bytes, stream);
}
