// A Ring (shared/ring.cuh) in one register: registers are short here.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

// The number of slots taken, or twice the slot and the phase where that would cost divisions.
template <int kSlots>
struct ShortRing {
  static constexpr bool kCounts = (kSlots & (kSlots - 1)) == 0;
  uint32_t at = 0;

  CUTE_DEVICE int slot() const { return int(kCounts ? at % kSlots : at / 2); }
  CUTE_DEVICE int before() const { return int(kCounts ? (at - 1) % kSlots : at < 2 ? kSlots - 1 : at / 2 - 1); }
  CUTE_DEVICE uint32_t phase() const { return kCounts ? at / kSlots % 2 : at % 2; }
  CUTE_DEVICE void advance() { at = kCounts ? at + 1 : at + 2 < 2 * kSlots ? at + 2 : at % 2 ^ 1; }
};

}  // namespace prism
