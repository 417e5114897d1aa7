// A combiner warp: turns the sums that consumer warps have left in memory into probabilities, and over the sub-rows of each part
// takes their maximum or sum. Runs under the next tile's products.
#pragma once

#include "score/sm90/packed_sums.cuh"
#include "score/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::score {

template <class Traits>
class Combiner {
  using Storage = typename Traits::SharedStorage;
  static constexpr int kLanes = 32;
  static constexpr int kConsumerWarps = 4 * Traits::kWarpGroups;
  static constexpr int kPartRows = Traits::kPartRows, kWarpRows = Traits::kWarpRows, kTileBlocks = Traits::kTileBlocks;
  static constexpr int kVector = kTileBlocks < 8 ? kTileBlocks : 8;     // key blocks of a lane at a time: 8 fill 16 bytes
  static constexpr int kRowsInFlight = kPartRows < 8 ? kPartRows : 8;  // whose loads are outstanding, 4 registers each
  using Packed = PackedSums<kVector>;

 public:
  __device__ __forceinline__ Combiner(Params const& params, Storage& smem, int warp)
      : params_(params), smem_(smem), warp_(warp), lane_(threadIdx.x % kLanes) {}

  __device__ __forceinline__ void run() {
    for (TileWalk walk; !walk.done(params_); walk.advance()) {
      Tile const tile = Tile::at<Traits>(params_, walk.index);
      wait_at(smem_.sums_full[ring_.slot], ring_.phase);
      // The warps of a tile are dealt out; every combiner warp gets a part of each warp group's.
      #pragma unroll 1
      for (int item = warp_; item < kConsumerWarps * Traits::kWarpParts; item += Traits::kCombinerWarps) {
        int const warp = item / Traits::kWarpParts, part = item % Traits::kWarpParts;
        int const row = tile.row_of<Traits>(params_, warp / 4) + warp % 4 * kWarpRows + part * kPartRows;
        if (row >= params_.num_sub_rows) continue;
        if (params_.mean) combine<true>(tile, warp, part, row);
        else combine<false>(tile, warp, part, row);
      }
      arrive_at(smem_.sums_empty[ring_.slot]);  // every lane, for its own reads
      ring_.advance();
    }
  }

 private:
  // Of the key blocks that the part's query block sees: all of its rows lie in one warp group, which has summed as many.
  template <bool kMean>
  __device__ __forceinline__ void combine(Tile const& tile, int warp, int part, int row) const {
    constexpr int kBlockRows = Traits::Config::kRowsPerBlock, kBlockColumns = Traits::Config::kColumnsPerBlock;
    int const visible = params_.num_visible(min((row / kBlockRows + 1) * kBlockRows, params_.num_sub_rows) - 1);
    int const num_blocks = (visible + kBlockColumns - 1) / kBlockColumns, valid = params_.num_sub_rows - row;
    int const head = tile.head_of<Traits>(params_, warp / 4);
    float* const to = params_.mass + (int64_t(head) * params_.num_parts + row / kPartRows) * params_.mass_stride;
    uint16_t const* const from = Traits::warp_sums(params_, ring_.slot, warp) + part * kPartRows * kTileBlocks;
    float const* const factors = smem_.factors[ring_.slot] + warp * kWarpRows + part * kPartRows;
    #pragma unroll 1
    for (int block = lane_ * kVector; block < num_blocks; block += kLanes * kVector) {
      float best[kVector] = {};
      uint16_t const* const column = from + block / kTileBlocks * (kWarpRows * kTileBlocks) + block % kTileBlocks;
      #pragma unroll 1
      for (int first = 0; first < kPartRows; first += kRowsInFlight) {
        Packed sums[kRowsInFlight];
        CUTE_UNROLL
        for (int i = 0; i < kRowsInFlight; ++i) sums[i] = __ldcg(reinterpret_cast<Packed const*>(column + (first + i) * kTileBlocks));
        CUTE_UNROLL
        for (int i = 0; i < kRowsInFlight; ++i) take<kMean>(best, sums[i], first + i < valid ? factors[first + i] : 0.0f);
      }
      CUTE_UNROLL
      for (int i = 0; i < kVector; i += 4) {
        *reinterpret_cast<float4*>(to + block + i) = make_float4(best[i], best[i + 1], best[i + 2], best[i + 3]);
      }
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
  int const warp_, lane_;  // warp: among the combiners
  Ring<Traits::kSumsStages> ring_;
};

}  // namespace prism::score
