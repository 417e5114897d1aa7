// A thread block cluster: its barrier, and another CTA's shared memory as an ordinary address. Owns no data.
#pragma once

#include <cute/config.hpp>

namespace prism {

CUTE_DEVICE int cluster_rank() { return int(__clusterRelativeBlockRank()); }

// Every thread of the cluster takes part. What was written before arrive is seen after wait, shared or global memory.
CUTE_DEVICE void cluster_arrive() {
  __syncwarp();  // the instruction takes whole warps
  __cluster_barrier_arrive();
}
CUTE_DEVICE void cluster_wait() { __cluster_barrier_wait(); }
CUTE_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The object in CTA `rank` that lies where `mine` lies here. mine: in dynamic shared memory.
template <class T>
CUTE_DEVICE T* cluster_peer(T* mine, int rank) {
  return static_cast<T*>(__cluster_map_shared_rank(mine, unsigned(rank)));
}

}  // namespace prism
