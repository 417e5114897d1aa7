// The kernel: who does what. One producer warp group (a walker warp and a loader thread for each team) and the teams' consumer warp
// groups, persistent. A team walks tiles of its own and shares nothing with the other but the SM, whose idle cycles it fills.
#pragma once

#include "attend/params.h"
#include "attend/sm90/consumer.cuh"
#include "attend/sm90/loader.cuh"
#include "attend/sm90/traits.cuh"
#include "attend/sm90/walker.cuh"
#include "shared/arch_guard.h"
#include "shared/cluster.cuh"
#include "shared/dependents.cuh"

#include <cutlass/arch/reg_reconfig.h>

namespace prism::attend {

template <class Traits>
__device__ __forceinline__ void init_barriers(typename Traits::SharedStorage& smem) {
  constexpr int kConsumerWarps = 4 * Traits::kWarpGroups;
  for (int i = 0; i < Traits::kQStages; ++i) {
    smem.q_full[i].init(1);                     // the loader, and the bytes it announced
    smem.q_empty[i].init(Traits::kWarpGroups * Traits::kQReleases);
  }
  for (auto& full : smem.kv_full) full.init(1);
  for (auto& empty : smem.kv_empty) empty.init(kConsumerWarps * Traits::kCluster);  // a copy writes to all of them
  for (int i = 0; i < Traits::kChunks; ++i) {
    smem.chunk_full[i].init(cutlass::NumThreadsPerWarp);  // every lane of the walker
    smem.chunk_empty[i].init(Traits::kCluster);           // the loaders
  }
  cutlass::arch::fence_barrier_init();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) attend_kernel(__grid_constant__ Params const params) {
  extern __shared__ __align__(1024) unsigned char smem_bytes[];
  auto* const team_smem = reinterpret_cast<typename Traits::SharedStorage*>(smem_bytes);

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&params.q, &params.k, &params.v, &params.out}) cute::prefetch_tma_descriptor(map);
    for (int team = 0; team < Traits::kTeams; ++team) init_barriers<Traits>(team_smem[team]);
  }
  if constexpr (Traits::kCluster == 1) __syncthreads();
  else cluster_sync();

  int const rank = Traits::kCluster == 1 ? 0 : cluster_rank();
  int const warp_group = cutlass::canonical_warp_group_idx();
  if (warp_group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::kProducerRegisters>();
    int const warp = cutlass::canonical_warp_idx_sync(), team = Traits::kTeams == 1 ? 0 : warp / 2;
    // Lists and tensors may come from the kernel before this one. The consumers touch memory only behind what these two loaded.
    await_previous_kernels();
    if (warp < 2 * Traits::kTeams) {
      if (warp % 2 == 0) {
        if (cute::elect_one_sync()) Loader<Traits>(params, team_smem[team], rank).run();
      } else if (rank == 0) {
        Walker<Traits>(params, team_smem[team], team, cutlass::canonical_lane_idx()).run();
      }
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::kConsumerRegisters>();
    int const team = (warp_group - 1) / Traits::kWarpGroups;
    Consumer<Traits>(params, team_smem[team], rank, team, (warp_group - 1) % Traits::kWarpGroups, threadIdx.x % 128).run();
  }
  if constexpr (Traits::kCluster > 1) cluster_sync();  // nobody writes to, or arrives at, a CTA that has left
}

}  // namespace prism::attend
