// A thread block cluster: its barrier, other CTAs' shared memory by address, stores that report to a barrier there. Owns no data.
//
// A cluster barrier with release and acquire costs a memory fence of the whole GPU and the L1 cache's content; stores that
// complete a transaction count on the receiver's mbarrier need neither.
#pragma once

#include <cute/arch/cluster_sm90.hpp>
#include <cute/config.hpp>

#include <cutlass/arch/barrier.h>

namespace prism {

CUTE_DEVICE int cluster_rank() { return int(__clusterRelativeBlockRank()); }

// Every thread of the cluster takes part. What was written before it is seen after it, shared or global memory.
CUTE_DEVICE void cluster_sync() {
  __syncwarp();  // the instruction takes whole warps
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

// The object in CTA `rank` that lies where `mine` lies here. mine: in dynamic shared memory.
template <class T>
CUTE_DEVICE T* cluster_peer(T* mine, int rank) {
  return static_cast<T*>(__cluster_map_shared_rank(mine, unsigned(rank)));
}

// The address in CTA `rank`'s shared memory of what lies at `mine` in this one's.
CUTE_DEVICE uint32_t cluster_address(void const* mine, int rank) {
  return cute::set_block_rank(cute::cast_smem_ptr_to_uint(mine), uint32_t(rank));
}

// Both addresses lie in one CTA; its barrier counts the bytes once they can be read there.
CUTE_DEVICE void store_async(uint32_t address, float4 const& x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
               "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
               : "memory");
}
CUTE_DEVICE void store_async(uint32_t address, float x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address), "f"(x),
               "r"(barrier)
               : "memory");
}

}  // namespace prism
