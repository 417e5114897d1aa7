// The products of a consumer warp group of the kernel for long rows, and its place in the ring of key slabs.
#pragma once

#include "select/sm90/long/ring.cuh"
#include "select/sm90/long/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/turns.cuh"

namespace prism {

template <class Traits>
class LongProducts {
 public:
  CUTE_DEVICE LongProducts(typename Traits::SharedStorage& smem, int warp_group)
      : smem_(smem), q_(descriptor(smem.q) + warp_group * (Traits::kMostSlabs * kQueryUnits)), k_(descriptor(smem.k)) {}

  // The last warp group passes the first turn.
  CUTE_DEVICE static void pass_turn() {
    if constexpr (Traits::kTileFits) Turns<Traits::kWarpGroups>::pass(this_warp_group());
  }

  CUTE_DEVICE static auto accumulator() {
    return cute::partition_fragment_C(typename Traits::Mma{}, cute::Shape<cute::Int<kLongRows>, cute::Int<kLongColumns>>{});
  }

  // Asks for the scores of the next tile, to be multiplied by the powers of two that scaled both means: small terms first, slab by slab; or
  // those of the high halves alone. They are there after await().
  template <bool kWhole, class Acc>
  CUTE_DEVICE void issue(Acc& acc, int slabs) {
    using namespace cute;
    auto const operand = [](uint32_t slab, int step) {
      constexpr int kStepBytes = 32;  // 16 halves
      uint64_t const bits = uint64_t(kDescriptorTop) << 32 | (slab + step * kStepBytes / kUnitBytes);
      return make_tensor(GMMA::DescriptorIterator{GmmaDescriptor(bits)}, Layout<Shape<_1, _1>>{});
    };
    mma_.accumulate_ = GMMA::ScaleOut::Zero;
    await_turn();
    warpgroup_fence_operand(acc);
    #pragma unroll 1
    for (int first = 0; first < Traits::kMostSlabs && first < slabs; first += Traits::kSlotSlabs) {
      int const slot = k_ring_.slot();
      uint32_t const q_slot = of_warp(q_ + first * kQueryUnits), k_slot = of_warp(k_ + slot * (Traits::kSlotBytes / kUnitBytes));
      wait_at(smem_.k_full[slot], k_ring_.phase());
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlotSlabs; ++slab) {
        if (slab > 0 && first + slab == slabs) break;
        warpgroup_arrive();
        uint32_t const q = q_slot + slab * kQueryUnits, k = k_slot + slab * kKeyUnits;
        // k-steps 0 and 1 are high halves, 2 and 3 low ones.
        CUTE_UNROLL
        for (int term = kWhole ? 0 : 2; term < 3; ++term) {
          CUTE_UNROLL
          for (int step = 0; step < 2; ++step) {
            gemm(mma_, operand(q, (term == 0 ? 2 : 0) + step), operand(k, (term == 1 ? 2 : 0) + step), acc);
            mma_.accumulate_ = GMMA::ScaleOut::One;
          }
        }
        warpgroup_commit_batch();  // behind each branch of its own, or ptxas adds a product of nothing
      }
      if (first > 0) {
        warpgroup_wait<1>();
        arrive_warp_at(smem_.k_empty[k_ring_.before()]);
      }
      k_ring_.advance();
    }
    warpgroup_fence_operand(acc);
    pass_turn();
  }

  // Until acc has the scores that were asked for; gives the keys back.
  template <class Acc>
  CUTE_DEVICE void await(Acc& acc) {
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(acc);
    arrive_warp_at(smem_.k_empty[k_ring_.before()]);
  }

  // Past a tile that the warp group does not see.
  CUTE_DEVICE void pass_by(int slabs) {
    await_turn();
    pass_turn();
    for (int slab = 0; slab < slabs; slab += Traits::kSlotSlabs) {
      wait_at(smem_.k_full[k_ring_.slot()], k_ring_.phase());
      arrive_warp_at(smem_.k_empty[k_ring_.slot()]);
      k_ring_.advance();
    }
  }

 private:
  CUTE_DEVICE static int this_warp_group() { return int(threadIdx.x) / 128 - 1; }  // not kept: registers are short
  CUTE_DEVICE static void await_turn() {
    if constexpr (Traits::kTileFits) Turns<Traits::kWarpGroups>::await(this_warp_group());
  }

  // Matrix descriptors of slabs (PTX ISA, "Matrix descriptor"): lower half the address, upper half the stride from one group of eight rows
  // to the next and the 128-byte swizzle.
  static constexpr uint32_t kUnitBytes = 16, kQueryUnits = kQuerySlabBytes / kUnitBytes, kKeyUnits = kKeySlabBytes / kUnitBytes;
  static constexpr uint32_t kDescriptorTop = 8 * kSlabRowBytes / kUnitBytes | 1u << 30;
  CUTE_DEVICE static uint32_t descriptor(void const* slab) { return cute::cast_smem_ptr_to_uint(slab) / kUnitBytes | 1u << 16; }

  typename Traits::SharedStorage& smem_;
  uint32_t const q_, k_;  // lower halves: of the warp group's first slab, and of slot 0
  typename Traits::Mma mma_;
  ShortRing<Traits::kSlots> k_ring_;
};

}  // namespace prism
