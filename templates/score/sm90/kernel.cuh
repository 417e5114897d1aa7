// The score kernel: who does what. A loader thread, three combiner warps and the consumer warp groups, persistent.
#pragma once

#include "score/sm90/combiner.cuh"
#include "score/sm90/consumer.cuh"
#include "score/sm90/loader.cuh"
#include "score/sm90/traits.cuh"
#include "shared/arch_guard.h"
#include "shared/dependents.cuh"

#include <cutlass/arch/reg_reconfig.h>

namespace prism::score {

template <class Traits>
__device__ __forceinline__ void init_barriers(typename Traits::SharedStorage& smem) {
  constexpr int kWarps = 4;  // of a warp group
  for (int i = 0; i < Traits::kWarpGroups; ++i) {
    smem.q_full[i].init(1);  // the loader, and the bytes it announced
    smem.q_empty[i].init(kWarps);
  }
  for (int i = 0; i < Traits::kKStages; ++i) {
    smem.k_full[i].init(1);
    smem.k_empty[i].init(kWarps * Traits::kWarpGroups);
  }
  for (int i = 0; i < Traits::kSumsStages; ++i) {
    // Every thread arrives: racecheck does not see that a lane's arrival stands for what its warp did before.
    smem.sums_full[i].init(kWarps * Traits::kWarpGroups * cutlass::NumThreadsPerWarp);
    smem.sums_empty[i].init(Traits::kCombinerWarps * cutlass::NumThreadsPerWarp);
  }
  cutlass::arch::fence_barrier_init();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) score_kernel(__grid_constant__ Params const params) {
  extern __shared__ __align__(1024) unsigned char smem_bytes[];
  auto& smem = *reinterpret_cast<typename Traits::SharedStorage*>(smem_bytes);
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&params.q);
    cute::prefetch_tma_descriptor(&params.k);
    init_barriers<Traits>(smem);
  }
  __syncthreads();
  launch_dependents();
  await_previous_kernels();  // the means are theirs, and so is whatever still reads the masses and sums
  int const warp_group = cutlass::canonical_warp_group_idx();
  if (warp_group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::kHelperRegisters>();
    int const warp = cutlass::canonical_warp_idx_sync();
    if (warp > 0) Combiner<Traits>(params, smem, int(threadIdx.x) - cutlass::NumThreadsPerWarp).run();
    else if (cute::elect_one_sync()) Loader<Traits>(params, smem).run();
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::kConsumerRegisters>();
    Consumer<Traits>(params, smem, warp_group - 1, threadIdx.x % 128).run();
  }
}

}  // namespace prism::score
