// mbarriers that guard ordinary shared-memory data. CUTLASS's calls do not tell the compiler that they order memory, so plain loads
// and stores could be moved across them; these can not be crossed.
#pragma once

#include <cutlass/arch/barrier.h>

namespace prism {

template <class Barrier>
__device__ __forceinline__ void wait_at(Barrier const& barrier, uint32_t phase) {
  barrier.wait(phase);
  asm volatile("" ::: "memory");
}

template <class Barrier>
__device__ __forceinline__ void arrive_at(Barrier const& barrier) {
  asm volatile("" ::: "memory");
  barrier.arrive();
}

template <class Barrier>
__device__ __forceinline__ void arrive_and_expect_at(Barrier const& barrier, uint32_t bytes) {
  asm volatile("" ::: "memory");
  barrier.arrive_and_expect_tx(bytes);
}

}  // namespace prism
