// Issue one warp-group matrix product without waiting for it.
#pragma once

#include <cute/tensor.hpp>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

namespace prism {

// C (+)= A B over all k-steps of the fragments. A is a shared-memory descriptor tensor or a register tensor. The caller
// waits with cute::warpgroup_wait<N>() before it reads C or overwrites A or B.
template <bool kAccumulate, class TiledMma, class TensorA, class TensorB, class TensorC>
__device__ __forceinline__ void issue_gemm(TiledMma& mma, TensorA& tA, TensorB const& tB, TensorC& tC) {
  constexpr bool kAInRegisters = !std::is_base_of_v<cute::GMMA::DescriptorIterator, typename TiledMma::FrgTypeA>;
  if constexpr (kAInRegisters) cute::warpgroup_fence_operand(tA);
  cute::warpgroup_fence_operand(tC);
  cute::warpgroup_arrive();
  mma.accumulate_ = kAccumulate ? cute::GMMA::ScaleOut::One : cute::GMMA::ScaleOut::Zero;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(tA); ++k) {
    cute::gemm(mma, tA(cute::_, cute::_, k), tB(cute::_, cute::_, k), tC);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
  cute::warpgroup_fence_operand(tC);
  if constexpr (kAInRegisters) cute::warpgroup_fence_operand(tA);
}

}  // namespace prism
