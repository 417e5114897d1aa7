// select for long rows: loader warps and consumer warp groups, persistent; emit.cuh makes lists from the bit masks of both bands.
//
// A row's scores are not kept but computed in every pass over it, two as a rule: 64 rows of 8192 columns would fill 2 MB.
#pragma once

#include "select/sm90/long/consumer.cuh"
#include "select/sm90/long/emit.cuh"
#include "select/sm90/long/loader.cuh"
#include "select/sm90/long/prepare.cuh"
#include "shared/arch_guard.h"

#include <cutlass/arch/reg_reconfig.h>

namespace prism {

// __maxnreg__: __launch_bounds__ would give it all registers of an SM.
template <class Traits, bool kProbs>
__global__ void __maxnreg__(Traits::launch_registers(kProbs)) select_long_kernel(__grid_constant__ LongParams const params) {
  extern __shared__ __align__(1024) unsigned char smem_bytes[];
  auto& smem = *reinterpret_cast<typename Traits::SharedStorage*>(smem_bytes);
  constexpr int kConsumerWarps = 4 * Traits::kWarpGroups;
  if (threadIdx.x == 0) {
    smem.job_full.init(Traits::kWarpGroups * kWarpSize + 1);  // loaders' lanes, once there is what they asked for, and the first loader
    smem.job_empty.init(Traits::kConsumers);
    smem.verdict.init(kConsumerWarps);
    smem.again[0] = smem.again[1] = 0;
    for (uint32_t& phase : smem.job_phase) phase = 0;
    for (int i = 0; i < Traits::kSlots; ++i) {
      smem.k_full[i].init(1);
      smem.k_empty[i].init(kConsumerWarps);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const warp_group = cutlass::canonical_warp_group_idx();
  if (warp_group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::loader_registers(kProbs)>();
    int const warp = cutlass::canonical_warp_idx_sync();
    if (warp < Traits::kWarpGroups) LongLoader<Traits>(params, smem, warp, threadIdx.x % kWarpSize).run();
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::consumer_registers(kProbs)>();
    LongConsumer<Traits, kProbs>(params, smem, warp_group - 1, threadIdx.x % 128).run();
  }
}

}  // namespace prism
