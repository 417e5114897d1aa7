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

// Four sums at once, the bits of warp_sum for each, in 22 instructions instead of 40: lanes soon hold one of them.
CUTE_DEVICE void warp_sums(float (&x)[4], int lane) {
  bool const last = lane & 16, odd = lane & 8;
  float const a = (last ? x[2] : x[0]) + __shfl_xor_sync(kFullWarp, last ? x[0] : x[2], 16);
  float const b = (last ? x[3] : x[1]) + __shfl_xor_sync(kFullWarp, last ? x[1] : x[3], 16);
  float sum = (odd ? b : a) + __shfl_xor_sync(kFullWarp, odd ? a : b, 8);
  CUTE_UNROLL
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = __shfl_sync(kFullWarp, sum, i * 8);
}

CUTE_DEVICE float warp_max(float x) {
  CUTE_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

// Of the four lanes of a quad, which share a row of wgmma's accumulator.
template <class T>
CUTE_DEVICE T quad_sum(T x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
CUTE_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
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
