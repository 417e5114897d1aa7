// The products of a consumer warp group of the kernel for long rows, and its place in the ring of key slabs.
#pragma once

#include "select/sm90/long/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism {

// Once every lane of the warp has come here.
template <class Barrier>
CUTE_DEVICE void release(Barrier const& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive_at(barrier);
}

template <class Traits>
class LongProducts {
 public:
  CUTE_DEVICE LongProducts(typename Traits::SharedStorage& smem, int warp_group, int thread)
      : smem_(smem), warp_group_(warp_group), thread_(thread) {}

  CUTE_DEVICE static auto accumulator() {
    return cute::partition_fragment_C(typename Traits::Mma{}, cute::Shape<cute::Int<kLongRows>, cute::Int<kLongColumns>>{});
  }

  // Scores of a tile, to be multiplied by the powers of two that scaled both means. Small terms first, slab by slab.
  template <class Acc>
  CUTE_DEVICE void take(Acc& acc, int slabs) {
    using namespace cute;
    auto thread_mma = mma_.get_slice(thread_);
    auto tQ = thread_mma.partition_fragment_A(make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{}));
    auto tK = thread_mma.partition_fragment_B(make_tensor(make_smem_ptr(smem_.k), typename Traits::LayoutK{}));
    int before = 0;
    mma_.accumulate_ = GMMA::ScaleOut::Zero;
    warpgroup_fence_operand(acc);
    #pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
      int const slot = k_ring_.slot, q_slab = warp_group_ * Traits::kMostSlabs + slab;
      wait_at(smem_.k_full[slot], k_ring_.phase);
      warpgroup_arrive();
      // k-steps 0 and 1 are high halves, 2 and 3 low ones.
      CUTE_UNROLL
      for (int term = 0; term < 3; ++term) {
        CUTE_UNROLL
        for (int k = 0; k < 2; ++k) {
          gemm(mma_, tQ(_, _, (term == 0 ? 2 : 0) + k, q_slab), tK(_, _, (term == 1 ? 2 : 0) + k, slot), acc);
          mma_.accumulate_ = GMMA::ScaleOut::One;
        }
      }
      warpgroup_commit_batch();
      if (slab > 0) {
        warpgroup_wait<1>();
        release(smem_.k_empty[before]);
      }
      before = slot;
      k_ring_.advance();
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    release(smem_.k_empty[before]);
  }

  // Past a tile that the warp group does not see.
  CUTE_DEVICE void pass_by(int slabs) {
    for (int slab = 0; slab < slabs; ++slab) {
      wait_at(smem_.k_full[k_ring_.slot], k_ring_.phase);
      release(smem_.k_empty[k_ring_.slot]);
      k_ring_.advance();
    }
  }

 private:
  typename Traits::SharedStorage& smem_;
  int const warp_group_, thread_;  // thread: in the warp group
  typename Traits::Mma mma_;
  Ring<Traits::kSlots> k_ring_;
};

}  // namespace prism
