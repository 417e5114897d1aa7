// A position in a ring of shared-memory slots and the mbarrier phase that belongs to it.
#pragma once

#include <cstdint>

namespace prism {

template <int kSlots>
struct Ring {
  int slot = 0;
  uint32_t phase = 0;  // parity to wait for on a "full" barrier; a producer waits for phase ^ 1 on "empty"

  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

}  // namespace prism
