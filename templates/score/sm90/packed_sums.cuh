// Sums of exponentials in 16 bits, for the memory in which they wait: 7 bits of exponent, 9 of mantissa, no sign. They are
// counted in units of 2^-64, where fp32's own exponent field holds them in its low 7 bits and flushes what is too small to 0.
//
// So a sum is rounded to 2^-10 of itself from 2^-62 to 2^61 times the exponential of the reference point. With 6 and 10 bits, 2^-46
// to 2^15, reference points moved so often on data with a few strong directions that 2.1 ms became 3.5 (H200, 128K tokens).
#pragma once

#include <cute/config.hpp>

#include <cstdint>
#include <type_traits>

namespace prism::score {

constexpr float kUnitOctaves = -64.0f;  // log2 of what the exponential of the reference point is
constexpr float kMostOctaves = -3.0f;   // the exponent field overflows into an eighth bit at 2^1
constexpr float kMostPacked = 0x1p-3f;
constexpr int kDroppedBits = 14;  // of fp32's 23 of mantissa

// Two sums, the first in the lower half. Beyond kMostPacked the result is not meant to be read.
CUTE_DEVICE uint32_t pack_sums(float first, float second) {
  constexpr uint32_t kUp = 1u << (16 - kDroppedBits), kHalf = 1u << 15;  // 16 bits end up on top, rounded
  uint32_t const low = __float_as_uint(first) * kUp + kHalf, high = __float_as_uint(second) * kUp + kHalf;
  return __byte_perm(low, high, 0x7632);
}

// kCount packed sums, 1, 2, 4 or 8, as one access takes them.
template <int kCount>
using PackedSums = std::conditional_t<kCount == 8, uint4,
                                      std::conditional_t<kCount == 4, uint2, std::conditional_t<kCount == 2, uint32_t, uint16_t>>>;

CUTE_DEVICE float first_sum(uint32_t packed) { return __uint_as_float((packed & 0xffffu) << kDroppedBits); }
CUTE_DEVICE float second_sum(uint32_t packed) { return __uint_as_float((packed >> 16) << kDroppedBits); }

}  // namespace prism::score
