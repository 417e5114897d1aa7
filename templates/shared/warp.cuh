// Warp-wide reductions in a fixed order. Every lane gets the same bits: butterflies add the same pairs on both sides.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

CUTE_DEVICE float warp_sum(float x) {
  CUTE_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

CUTE_DEVICE float warp_max(float x) {
  CUTE_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

// An inclusive prefix sum over the lanes.
CUTE_DEVICE int warp_prefix_sum(int x, int lane) {
  CUTE_UNROLL
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    int const other = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

}  // namespace prism
