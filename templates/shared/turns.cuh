// Turns that the warp groups of a CTA take through named barriers, one after the other: one's products run under what the others make of
// theirs, where together they would also wait together.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace prism {

// All warp groups take equally many turns. The last one passes the first.
template <int kWarpGroups>
struct Turns {
  static constexpr int kThreads = 2 * 128;  // who passes a turn and who takes it

  __device__ __forceinline__ static void await(int warp_group) { cutlass::arch::NamedBarrier::sync(kThreads, uint32_t(warp_group)); }
  __device__ __forceinline__ static void pass(int warp_group) {
    cutlass::arch::NamedBarrier::arrive(kThreads, uint32_t((warp_group + 1) % kWarpGroups));
  }
};

}  // namespace prism
