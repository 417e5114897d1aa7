// A consumer warp group: 64 sub-rows of one q head against the sub-columns they see. Owns the products, the mask and the sums over
// key blocks. Warps meet in the matrix instruction, and where a warp group passes its turn to the next.
//
// Products are taken once. Sums over key blocks, relative to the row's reference point, wait in memory (in L2, mostly) until the
// row's total is known; then the combiner warps (combiner.cuh) take them, under the next tile's products.
#pragma once

#include "score/sm90/exponentials.cuh"
#include "score/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"
#include "shared/turns.cuh"
#include "shared/wgmma.cuh"

namespace prism::score {

template <class Traits>
class Consumer {
  using Storage = typename Traits::SharedStorage;
  using Sums = Exponentials<Traits::kThreadBlocks>;
  using Packed = PackedSums<Traits::kThreadBlocks>;  // a thread's sums of one row
  using Turn = Turns<Traits::kWarpGroups>;
  static constexpr int kTileBlocks = Traits::kTileBlocks, kThreadBlocks = Traits::kThreadBlocks, kWarpRows = Traits::kWarpRows;

 public:
  __device__ __forceinline__ Consumer(Params const& params, Storage& smem, int warp_group, int thread)
      : params_(params), smem_(smem), warp_group_(warp_group), thread_(thread) {}

  __device__ __forceinline__ void run() {
    using namespace cute;
    auto tSrS = partition_fragment_C(mma_, Shape<Int<Traits::kRows>, typename Traits::Columns>{});
    if (warp_group_ == Traits::kWarpGroups - 1) Turn::pass(warp_group_);  // the first may begin
    for (TileWalk walk; !walk.done(params_); walk.advance()) {
      Tile const tile = Tile::at<Traits>(params_, walk.index);
      row_ = tile.row_of<Traits>(params_, warp_group_);
      wait_at(smem_.sums_empty[sums_ring_.slot], sums_ring_.phase ^ 1);
      warp_sums_ = Traits::warp_sums(params_, sums_ring_.slot, warp_group_ * 4 + thread_ / 32);
      Sums sums(params_.softmax_scale_log2);
      sum_row_blocks(tile, sums, tSrS);
      hand_over(sums);
    }
  }

 private:
  template <class S>
  __device__ __forceinline__ void sum_row_blocks(Tile const& tile, Sums& sums, S& tSrS) {
    int const first_sees = params_.num_visible(row_);
    wait_at(smem_.q_full[warp_group_], q_ring_.phase);
    for (int n = 0; n < tile.num_k_tiles; ++n) {
      wait_at(smem_.k_full[k_ring_.slot], k_ring_.phase);
      Turn::await(warp_group_);
      issue(tSrS);
      cute::warpgroup_wait<0>();
      Turn::pass(warp_group_);
      arrive_warp_at(smem_.k_empty[k_ring_.slot]);
      k_ring_.advance();
      if (n + 1 == tile.num_k_tiles) {  // the next rows are on their way while this tile's exponentials are taken
        arrive_warp_at(smem_.q_empty[warp_group_]);
        q_ring_.advance();
      }
      if ((n + 1) * kTileColumns > first_sees) mask(tSrS, n);
      if (n == 0) sums.open(tSrS);
      sums.add(tSrS, [&](float const (&factors)[2]) { rescale(factors, n); });
      store(sums, n);
    }
  }

  template <class S>
  __device__ __forceinline__ void issue(S& tSrS) {
    using namespace cute;
    auto sQ = make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{})(_, _, warp_group_);
    auto sK = make_tensor(make_smem_ptr(smem_.k), typename Traits::LayoutK{})(_, _, k_ring_.slot);
    auto thr_mma = mma_.get_slice(thread_);
    auto tSdQ = thr_mma.partition_fragment_A(sQ);
    auto tSdK = thr_mma.partition_fragment_B(sK);
    issue_gemm<false>(mma_, tSdQ, tSdK, tSrS);
  }

  // Hides the columns of a tile that a row does not see.
  template <class S>
  __device__ __forceinline__ void mask(S& tSrS, int tile) const {
    int visible[2];  // of this thread's columns
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      visible[r] = params_.num_visible(row_ + row_in_tile() + 8 * r) - tile * kTileColumns - thread_ % 4 * Traits::kThreadColumns;
    }
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tSrS); ++i) {
      if (2 * (i / 4) + i % 2 >= visible[(i / 2) % 2]) tSrS(i) = -INFINITY;
    }
  }

  // Tells the combiners that the sums are complete, and what they are to be multiplied by.
  __device__ __forceinline__ void hand_over(Sums const& sums) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const inverse = sums.inverse_total(r);
      if (thread_ % 4 == 0) smem_.factors[sums_ring_.slot][warp_group_ * Traits::kRows + row_in_tile() + 8 * r] = inverse;
    }
    arrive_at(smem_.sums_full[sums_ring_.slot]);  // every lane, for its own sums
    sums_ring_.advance();
  }

  // This thread's sums of row r in a tile.
  __device__ __forceinline__ uint16_t* sums_of(int tile, int r) const {
    return warp_sums_ + (tile * kWarpRows + thread_ % 32 / 4 + 8 * r) * kTileBlocks + thread_ % 4 * kThreadBlocks;
  }

  __device__ __forceinline__ void store(Sums const& sums, int tile) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const(&x)[kThreadBlocks] = sums.sums[r];
      uint16_t* const to = sums_of(tile, r);
      if constexpr (kThreadBlocks == 1) {
        *to = uint16_t(pack_sums(x[0], 0.0f));
      } else {
        uint32_t packed[kThreadBlocks / 2];
        CUTE_UNROLL
        for (int i = 0; i < kThreadBlocks / 2; ++i) packed[i] = pack_sums(x[2 * i], x[2 * i + 1]);
        *reinterpret_cast<Packed*>(to) = reinterpret_cast<Packed const&>(packed);
      }
    }
  }

  // Brings the sums of the first num_tiles tiles along where a row's reference point has moved: hardly ever run.
  __device__ __forceinline__ void rescale(float const (&factors)[2], int num_tiles) const {
    #pragma unroll 1
    for (int tile = 0; tile < num_tiles; ++tile) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        uint16_t* const at = sums_of(tile, r);
        CUTE_UNROLL
        for (int b = 0; b < kThreadBlocks; ++b) at[b] = uint16_t(pack_sums(first_sum(at[b]) * factors[r], 0.0f));
      }
    }
  }

  __device__ __forceinline__ int row_in_tile() const { return kWarpRows * (thread_ / 32) + (thread_ % 32) / 4; }  // of r = 0

  Params const& params_;
  Storage& smem_;
  int const warp_group_;
  int const thread_;  // 0..127 in the warp group
  int row_ = 0;  // this warp group's first sub-row
  uint16_t* warp_sums_ = nullptr;
  typename Traits::Mma mma_;
  Ring<1> q_ring_;
  Ring<Traits::kSumsStages> sums_ring_;
  Ring<Traits::kKStages> k_ring_;
};

}  // namespace prism::score
