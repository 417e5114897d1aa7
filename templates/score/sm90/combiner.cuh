// The combiner warps: turn the sums that consumer warps have left in memory into probabilities, and over the sub-rows of each part
// take their maximum or sum. Run under the next tile's products.
//
// What they wait for is memory: a lane has all rows of a part in flight, and a tile's parts and key blocks are dealt to lanes as
// one row of work, so that the short tiles at a launch's end leave none of them idle.
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
  static constexpr int kParts = 4 * Traits::kWarpGroups * Traits::kWarpParts;  // of a tile
  static constexpr int kPartRows = Traits::kPartRows, kWarpRows = Traits::kWarpRows, kTileBlocks = Traits::kTileBlocks;
  static constexpr int kVector = kTileBlocks < 8 ? kTileBlocks : 8;  // key blocks of a lane at a time: 8 fill 16 bytes
  using Packed = PackedSums<kVector>;

 public:
  __device__ __forceinline__ Combiner(Params const& params, Storage& smem, int lane) : params_(params), smem_(smem), lane_(lane) {}

  __device__ __forceinline__ void run() {
    for (TileWalk walk; !walk.done(params_); walk.advance()) {
      Tile const tile = Tile::at<Traits>(params_, walk.index);
      wait_at(smem_.sums_full[ring_.slot], ring_.phase);
      if (params_.mean) combine_parts<true>(tile);
      else combine_parts<false>(tile);
      arrive_at(smem_.sums_empty[ring_.slot]);  // every lane, for its own reads
      ring_.advance();
    }
  }

 private:
  // This lane's share of the vectors of key blocks of all parts.
  template <bool kMean>
  __device__ __forceinline__ void combine_parts(Tile const& tile) const {
    int const vectors = tile.num_k_tiles * (kTileBlocks / kVector);  // of a part
    int const step_parts = kLanes / vectors, step_vectors = kLanes % vectors;
    int part = lane_ / vectors, vector = lane_ % vectors;
    #pragma unroll 1
    while (part < kParts) {
      combine<kMean>(tile, part / Traits::kWarpParts, part % Traits::kWarpParts, vector * kVector);
      part += step_parts;
      vector += step_vectors;
      if (vector >= vectors) {
        vector -= vectors;
        ++part;
      }
    }
  }

  // A vector of key blocks of one part, unless its query block sees none of them: all of its rows lie in one warp group, which has
  // summed as many.
  template <bool kMean>
  __device__ __forceinline__ void combine(Tile const& tile, int warp, int part, int block) const {
    constexpr int kBlockRows = Traits::Config::kRowsPerBlock, kBlockColumns = Traits::Config::kColumnsPerBlock;
    int const row = tile.row_of<Traits>(params_, warp / 4) + warp % 4 * kWarpRows + part * kPartRows, q_block = row / kBlockRows;
    int const last_row = min((q_block + 1) * kBlockRows, params_.num_sub_rows) - 1, valid = params_.num_sub_rows - row;
    if (valid <= 0 || block * kBlockColumns >= params_.num_visible(last_row)) return;
    uint16_t const* const from = Traits::warp_sums(params_, ring_.slot, warp) + part * kPartRows * kTileBlocks +
                                 block / kTileBlocks * (kWarpRows * kTileBlocks) + block % kTileBlocks;
    Packed sums[kPartRows];
    CUTE_UNROLL
    for (int i = 0; i < kPartRows; ++i) sums[i] = __ldcg(reinterpret_cast<Packed const*>(from + i * kTileBlocks));
    float const* const factors = smem_.factors[ring_.slot] + warp * kWarpRows + part * kPartRows;
    float best[kVector] = {};
    CUTE_UNROLL
    for (int i = 0; i < kPartRows; ++i) take<kMean>(best, sums[i], i < valid ? factors[i] : 0.0f);
    int const head = tile.head_of<Traits>(params_, warp / 4);
    float* const to = params_.masses.mass + params_.masses.row(head, q_block, row % kBlockRows / kPartRows) + block;
    CUTE_UNROLL
    for (int i = 0; i < kVector; i += 4) *reinterpret_cast<float4*>(to + i) = make_float4(best[i], best[i + 1], best[i + 2], best[i + 3]);
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
