// The kernel: who does what. One producer warp group (walker warp, loader thread) and two consumer warp groups, persistent.
#pragma once

#include "attend/params.h"
#include "attend/sm90/consumer.cuh"
#include "attend/sm90/loader.cuh"
#include "attend/sm90/traits.cuh"
#include "attend/sm90/walker.cuh"
#include "shared/arch_guard.h"

#include <cutlass/arch/reg_reconfig.h>

namespace prism::attend {

template <class Traits>
__device__ __forceinline__ void init_barriers(typename Traits::SharedStorage& smem) {
  constexpr int kConsumerWarps = 4 * Traits::kWarpGroups;
  for (int i = 0; i < Traits::kQStages; ++i) {
    smem.q_full[i].init(1);                    // the loader, and the bytes it announced
    smem.q_empty[i].init(Traits::kWarpGroups);  // the thread that stored the output
  }
  for (int i = 0; i < Traits::kKvStages; ++i) {
    smem.kv_full[i].init(1);
    smem.kv_empty[i].init(kConsumerWarps);
  }
  for (int i = 0; i < Traits::kChunks; ++i) {
    smem.chunk_full[i].init(cutlass::NumThreadsPerWarp);  // every lane of the walker
    smem.chunk_empty[i].init(1);                          // the loader
  }
  cutlass::arch::fence_barrier_init();
}

template <class Traits, class TmaQ, class TmaK, class TmaV, class TmaO>
__global__ void __launch_bounds__(Traits::kThreads, 1)
attend_kernel(__grid_constant__ Params const params, __grid_constant__ TmaQ const tma_q, __grid_constant__ TmaK const tma_k,
              __grid_constant__ TmaV const tma_v, __grid_constant__ TmaO const tma_o) {
  extern __shared__ __align__(1024) unsigned char smem_bytes[];
  auto& smem = *reinterpret_cast<typename Traits::SharedStorage*>(smem_bytes);

  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(tma_q.get_tma_descriptor());
    cute::prefetch_tma_descriptor(tma_k.get_tma_descriptor());
    cute::prefetch_tma_descriptor(tma_v.get_tma_descriptor());
    cute::prefetch_tma_descriptor(tma_o.get_tma_descriptor());
    init_barriers<Traits>(smem);
  }
  __syncthreads();

  int const warp_group = cutlass::canonical_warp_group_idx();
  if (warp_group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::kProducerRegisters>();
    int const warp = cutlass::canonical_warp_idx_sync();
    if (warp == 0) {
      if (cute::elect_one_sync()) Loader<Traits, TmaQ, TmaK, TmaV>(params, tma_q, tma_k, tma_v, smem).run();
    } else if (warp == 1) {
      Walker<Traits>(params, smem, cutlass::canonical_lane_idx()).run();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::kConsumerRegisters>();
    Consumer<Traits, TmaO>(params, tma_o, smem, warp_group - 1, threadIdx.x % 128).run();
  }
}

}  // namespace prism::attend
