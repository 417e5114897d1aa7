// From the sums of a sub-block to its mean in memory: what subpool and rotate share. Must not sum.
//
// fp16 holds a mean to 2^-11, eight times closer than bf16; one beyond its range of 65504 becomes 65504.
#pragma once

#include "pool/sm90/granules.cuh"
#include "score/params.h"
#include "subpool/params.h"

namespace prism::subpool {

// Two means as fp16, the first in the lower half. NaN stays NaN.
CUTE_DEVICE uint32_t to_halves(float first, float second) {
  uint32_t result;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

// Where sub-column `sub` lies among k's means (score/sm90/traits.cuh has the reason).
CUTE_HOST_DEVICE int place_in_tiles(int sub) {
  constexpr int kTile = score::kTileColumns, kQuadColumns = kTile / 4;
  int const in_tile = sub % kTile, owner = in_tile / kQuadColumns, index = in_tile % kQuadColumns;
  return sub - in_tile + index / 2 * 8 + owner * 2 + index % 2;
}

// Writes 8 dims of the mean of sub-block `sub`, whose first num_tokens tokens have been summed, and where it is not complete the sums
// themselves for the next chunk. head_row: of the head among the batch's.
template <int kHeadDim>
CUTE_DEVICE void write_mean(Tensor const& t, DimSum<kChunkDims> const& sum, int64_t head_row, int sub, int num_tokens, int first_dim) {
  float mean[kChunkDims];
  if (num_tokens == 1 << t.log2_sub) {
    float const share = __uint_as_float(uint32_t(127 - t.log2_sub) << 23);  // a power of two: a product is the quotient's bits
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims; ++i) mean[i] = sum.value[i] * share;
  } else {
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims; ++i) mean[i] = __fdiv_rn(sum.value[i], float(num_tokens));
    if (t.tail_out != nullptr) sum.store(t.tail_out + head_row * kHeadDim + first_dim);
  }
  int64_t const row = head_row * t.capacity + (t.in_tile_order ? place_in_tiles(sub) : sub);
  reinterpret_cast<uint4*>(t.means)[(row * kHeadDim + first_dim) / kChunkDims] =
      make_uint4(to_halves(mean[0], mean[1]), to_halves(mean[2], mean[3]), to_halves(mean[4], mean[5]), to_halves(mean[6], mean[7]));
}

}  // namespace prism::subpool
