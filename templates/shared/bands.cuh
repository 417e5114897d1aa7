// A band as a compile-time list of 8-dim chunks (chunk c is dims 8c..8c+7). Owns nothing at run time; knows no RoPE variant.
#pragma once

#include <cute/config.hpp>

#include <cstdint>
#include <utility>

namespace prism {

constexpr int kChunkDims = 8;  // one 16-byte vector of a 16-bit element, one k-step of a tf32 MMA

template <int... kList>
struct ChunkList {
  static constexpr int kSize = sizeof...(kList);
  static constexpr int kDims = kSize * kChunkDims;
  static constexpr int kChunks[kSize] = {kList...};
  static constexpr uint32_t kBits = ((uint32_t(1) << kList) | ... | 0u);  // bit c: chunk c is in the band

  CUTE_HOST_DEVICE static constexpr bool contains(int chunk) { return (kBits >> chunk) & 1u; }
};

}  // namespace prism
