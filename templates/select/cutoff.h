// The top-p cut-off of one row by a search on the value: no sort. Integers only, so exact and free of order.
//
// Runs on host and device: the caller supplies the sum of all values >= x, e.g. one pass of a warp over its row.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

constexpr uint32_t kFixedOne = 1u << 30;  // probability 1: p * 2^30 is exact in fp32, and a row's sum fits uint32

constexpr uint32_t kAllTies = 0xffffffffu;

// Keeps values > value, and of those equal to it the `ties` with the lowest index. value 0 keeps everything visible.
struct Cutoff {
  uint32_t value;
  uint32_t ties;
};

constexpr Cutoff kKeepAll{0u, kAllTies};
constexpr Cutoff kKeepNone{0xffffffffu, kAllTies};

CUTE_HOST_DEVICE int floor_log2(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(int(x));
#else
  return 31 - __builtin_clz(x);
#endif
}

// Strictly between low and high, which are at least 2 apart: by exponent while they are octaves apart, then halfway.
CUTE_HOST_DEVICE uint32_t probe_between(uint32_t low, uint32_t high) {
  int const low_exp = floor_log2(low | 1u), high_exp = floor_log2(high);
  return high_exp - low_exp >= 2 ? 1u << ((low_exp + high_exp + 1) / 2) : low + (high - low) / 2;
}

// The shortest prefix, in falling order, whose sum reaches target. target: 1 .. 2^30. bound: above every value. floor: a guess
// at the smallest, right or wrong. sum_at_least(x): the sum of all values >= x, for x >= 1, below 2^32.
template <class SumAtLeast>
CUTE_HOST_DEVICE Cutoff find_cutoff(uint32_t target, uint32_t floor, uint32_t bound, SumAtLeast const& sum_at_least) {
  uint32_t low = 0, high = bound;         // sum(>= low) >= target > sum(>= high), taking the sum at 0 as infinite
  uint32_t sum_low = 0, sum_high = 0;
  while (high - low > 1) {
    bool const above_floor = low < floor && floor < high;
    uint32_t const probe = !above_floor ? probe_between(low, high) : high - floor > 1 ? probe_between(floor, high) : floor;
    uint32_t const sum = sum_at_least(probe);
    if (sum >= target) {
      low = probe;
      sum_low = sum;
    } else {
      high = probe;
      sum_high = sum;
    }
    // Two values in [low, high) would add up to 2 * low or more: a smaller sum is a single value, the one sought.
    if (low > 0 && sum_low - sum_high < 2 * low) return {sum_low - sum_high, kAllTies};
  }
  if (low == 0) return kKeepAll;
  return {low, (target - sum_high + low - 1) / low};
}

}  // namespace prism
