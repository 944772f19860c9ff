// Streams, as far as other files ask about them.
#pragma once

namespace sim {

bool is_stream(void *);  // also the default streams 0, 1 (legacy) and 2 (of the thread)

}  // namespace sim
