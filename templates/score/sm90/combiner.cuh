// The combiner warps: turn the sums that consumer warps have left in memory into probabilities, and over the sub-rows of each part
// take their maximum or sum. Run under the next tile's products.
//
// What they wait for is memory: a lane has all 16 rows of a consumer warp in flight, and a tile's warps and key blocks are dealt to
// lanes as one row of work, so that the short tiles at a launch's end leave none of them idle.
#pragma once

#include "score/sm90/packed_sums.cuh"
#include "score/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::score {

template <class Traits>
class Combiner {
  using Storage = typename Traits::SharedStorage;
  static constexpr int kLanes = Traits::kCombinerWarps * cutlass::NumThreadsPerWarp;
  static constexpr int kWarps = 4 * Traits::kWarpGroups;  // consumers
  static constexpr int kBlockRows = Traits::Config::kRowsPerBlock, kPartRows = Traits::kPartRows, kWarpRows = Traits::kWarpRows;
  static constexpr int kTileBlocks = Traits::kTileBlocks;
  static constexpr int kVector = kTileBlocks < 8 ? kTileBlocks : 8;  // key blocks of a lane at a time: 8 fill 16 bytes
  using Packed = PackedSums<kVector>;

 public:
  __device__ __forceinline__ Combiner(Params const& params, Storage& smem, int lane) : params_(params), smem_(smem), lane_(lane) {}

  __device__ __forceinline__ void run() {
    for (TileWalk walk; !walk.done(params_); walk.advance()) {
      Tile const tile = Tile::at<Traits>(params_, walk.index);
      wait_at(smem_.sums_full[ring_.slot], ring_.phase);
      if (params_.mean) combine_tile<true>(tile);
      else combine_tile<false>(tile);
      arrive_at(smem_.sums_empty[ring_.slot]);  // every lane, for its own reads
      ring_.advance();
    }
  }

 private:
  // This lane's share of the vectors of key blocks of all warps.
  template <bool kMean>
  __device__ __forceinline__ void combine_tile(Tile const& tile) const {
    int const vectors = tile.num_k_tiles * (kTileBlocks / kVector);  // of a warp
    int const step_warps = kLanes / vectors, step_vectors = kLanes % vectors;
    int warp = lane_ / vectors, vector = lane_ % vectors;
    #pragma unroll 1
    while (warp < kWarps) {
      combine<kMean>(tile, warp, vector * kVector);
      warp += step_warps;
      vector += step_vectors;
      if (vector >= vectors) {
        vector -= vectors;
        ++warp;
      }
    }
  }

  // A vector of key blocks of the parts of one warp. Every row of a part's query block lies in one warp group, which has summed as
  // many columns of each.
  template <bool kMean>
  __device__ __forceinline__ void combine(Tile const& tile, int warp, int block) const {
    int const row = tile.row_of<Traits>(params_, warp / 4) + warp % 4 * kWarpRows, head = tile.head_of<Traits>(params_, warp / 4);
    if (row >= params_.num_sub_rows || !sees(min(row + kWarpRows, params_.num_sub_rows) - 1, block)) return;
    uint16_t const* const from =
        Traits::warp_sums(params_, ring_.slot, warp) + block / kTileBlocks * (kWarpRows * kTileBlocks) + block % kTileBlocks;
    Packed sums[kWarpRows];
    CUTE_UNROLL
    for (int i = 0; i < kWarpRows; ++i) sums[i] = __ldcg(reinterpret_cast<Packed const*>(from + i * kTileBlocks));
    float const* const factors = smem_.factors[ring_.slot] + warp * kWarpRows;
    CUTE_UNROLL
    for (int first = 0; first < kWarpRows; first += kPartRows) {
      float best[kVector] = {};
      CUTE_UNROLL
      for (int i = first; i < first + kPartRows; ++i) {
        take<kMean>(best, sums[i], row + i < params_.num_sub_rows ? factors[i] : 0.0f);
      }
      if (row + first < params_.num_sub_rows && sees(row + first, block)) store(best, head, row + first, block);
    }
  }

  // Whether the query block of a sub-row sees one of the key blocks from `block` on.
  __device__ __forceinline__ bool sees(int row, int block) const {
    int const last_row = min((row / kBlockRows + 1) * kBlockRows, params_.num_sub_rows) - 1;
    return block * Traits::Config::kColumnsPerBlock < params_.num_visible(last_row);
  }

  // The masses of the part whose first sub-row is `row`.
  __device__ __forceinline__ void store(float const (&masses)[kVector], int head, int row, int block) const {
    float* const to = params_.masses.mass + params_.masses.row(head, row / kBlockRows, row % kBlockRows / kPartRows) + block;
    CUTE_UNROLL
    for (int i = 0; i < kVector; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(masses[i], masses[i + 1], masses[i + 2], masses[i + 3]);
    }
  }

  // One row's probabilities of a vector of key blocks.
  template <bool kMean>
  static __device__ __forceinline__ void take(float (&best)[kVector], Packed const& sums, float factor) {
    auto const& pairs = reinterpret_cast<uint32_t const(&)[kVector / 2]>(sums);
    CUTE_UNROLL
    for (int i = 0; i < kVector / 2; ++i) {
      float const first = first_sum(pairs[i]) * factor, second = second_sum(pairs[i]) * factor;
      best[2 * i] = kMean ? best[2 * i] + first : fmaxf(best[2 * i], first);
      best[2 * i + 1] = kMean ? best[2 * i + 1] + second : fmaxf(best[2 * i + 1], second);
    }
  }

  Params const& params_;
  Storage& smem_;
  int const lane_;  // among those of all combiners
  Ring<Traits::kSumsStages> ring_;
};

}  // namespace prism::score
