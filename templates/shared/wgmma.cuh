// Issue one warp-group matrix product without waiting for it, and the descriptors of its operands in shared memory.
#pragma once

#include <cute/tensor.hpp>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

namespace prism {

// A descriptor that moves by one 64-bit addition. CuTe's adds to the low half alone, and ptxas then has a move for the upper half of
// each. An address never carries into the fields above it.
struct WideDescriptor : cute::SM90::GMMA::DescriptorIterator {
  template <class Offset>
  __device__ __forceinline__ WideDescriptor operator+(Offset const& offset) const {
    WideDescriptor moved = *this;
    moved.desc_.desc_ += uint64_t(uint32_t(offset));
    return moved;
  }
};

template <class Fragment>
__device__ __forceinline__ auto wide_descriptors(Fragment const& fragment) {
  return cute::make_tensor(WideDescriptor{fragment.data()}, fragment.layout());
}

// C (+)= A B over all k-steps of the fragments. A is a shared-memory descriptor tensor or a register tensor. The caller
// waits with cute::warpgroup_wait<N>() before it reads C or overwrites A or B. Without kFence right behind another product, since when
// no register of this one was touched.
template <bool kAccumulate, bool kFence = true, class TiledMma, class TensorA, class TensorB, class TensorC>
__device__ __forceinline__ void issue_gemm(TiledMma& mma, TensorA& tA, TensorB const& tB, TensorC& tC) {
  constexpr bool kAInRegisters = !std::is_base_of_v<cute::GMMA::DescriptorIterator, typename TiledMma::FrgTypeA>;
  if constexpr (kAInRegisters) cute::warpgroup_fence_operand(tA);
  cute::warpgroup_fence_operand(tC);
  if constexpr (kFence) cute::warpgroup_arrive();
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
