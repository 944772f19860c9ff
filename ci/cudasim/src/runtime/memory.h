// The table of allocations. Device memory is host memory; the table says which is which, and where each ends.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sim {

enum class Memory { PINNED, DEVICE, MANAGED, MODULE };  // MODULE: variables of a PTX module
struct Allocation {
  uint64_t start = 0, size = 0;
  Memory kind = Memory::DEVICE;
  void *owned = nullptr;  // what to give back to the host's allocator; null for registered host memory
  bool contains(uint64_t address, uint64_t bytes) const {
    return address - start <= size && bytes <= size - (address - start);
  }
};

void *allocate(uint64_t size, Memory);  // null if there is no room
bool release(void *, Memory);           // false if it is no start of an allocation of that kind
bool find(const void *, Allocation &);

}  // namespace sim
