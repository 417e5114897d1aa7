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

// A warp's one arrival, once every lane of it has come here.
template <class Barrier>
__device__ __forceinline__ void arrive_warp_at(Barrier const& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive_at(barrier);
}

// At the barrier that lies where `barrier` does in CTA `rank` of a cluster of kCluster; rank may be this CTA's own.
template <int kCluster, class Barrier>
__device__ __forceinline__ void arrive_at_peer(Barrier const& barrier, int rank) {
  if constexpr (kCluster == 1) {
    arrive_at(barrier);
  } else {
    asm volatile("" ::: "memory");
    barrier.arrive(uint32_t(rank));
  }
}

// Orders this thread's accesses to the shared memory of a cluster of kCluster: before an arrival at a peer that tells of what was
// written there, and after a wait for one. The barrier itself orders memory inside a CTA only.
template <int kCluster>
__device__ __forceinline__ void fence_cluster() {
  if constexpr (kCluster > 1) asm volatile("fence.acq_rel.cluster;" ::: "memory");
}

template <class Barrier>
__device__ __forceinline__ void arrive_and_expect_at(Barrier const& barrier, uint32_t bytes) {
  asm volatile("" ::: "memory");
  barrier.arrive_and_expect_tx(bytes);
}

}  // namespace prism
