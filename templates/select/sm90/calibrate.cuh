// Step 3 of method.md: sums of energies over a head's blocks, and the scale from a dot product to a logit. Fixed orders of addition.
#pragma once

#include "select/params.h"
#include "shared/cluster.cuh"
#include "shared/mbarrier.cuh"
#include "shared/warp.cuh"

#include <cutlass/arch/barrier.h>

namespace prism {

// The sums over all blocks of the energies of a list's q heads and, as the last side, of its KV head. Each CTA of a cluster adds up a
// part and gives it to all. kMaxSides: of q heads and the KV head together.
template <int kMaxSides, int kWarps, int kCluster>
struct EnergySums {
  float warp_part[kMaxSides][kWarps][kComponents];
  float cta_part[kCluster][kMaxSides][kComponents];

  // Floats that a CTA gets from its cluster.
  CUTE_DEVICE static int num_shared(int heads) { return kCluster * (heads + 1) * kComponents; }

  CUTE_DEVICE static int num_parts(int heads) { return max(kWarps / (heads + 1), 1); }

  // This CTA's part of every side; each warp adds up one side, or a part of it.
  CUTE_DEVICE void sum(SelectParams const& p, int q_row, int k_row, int heads, int rank) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    int const sides = heads + 1, parts = num_parts(heads);
    for (int task = warp; task < sides * parts; task += kWarps) {
      int const side = task % sides, part = task / sides;
      int const num_blocks = side < heads ? p.num_q_blocks : p.num_k_blocks;
      float const* energy = side < heads ? p.q_energy + int64_t(q_row + side) * p.num_q_blocks * kComponents
                                         : p.k_energy + int64_t(k_row) * p.k_capacity * kComponents;
      float sums[kComponents] = {};
      #pragma unroll 4
      for (int block = (rank * parts + part) * kWarpSize + lane; block < num_blocks; block += kCluster * parts * kWarpSize) {
        CUTE_UNROLL
        for (int c = 0; c < kComponents; ++c) sums[c] += __ldg(energy + block * kComponents + c);
      }
      CUTE_UNROLL
      for (int c = 0; c < kComponents; ++c) {
        float const total = warp_sum(sums[c]);
        if (lane == 0) warp_part[side][part][c] = total;
      }
    }
  }

  // Gives this CTA's part to the cluster; full counts the bytes. A __syncthreads lies between sum and share.
  CUTE_DEVICE void share(int heads, int rank, cutlass::arch::ClusterTransactionBarrier& full) {
    int const entries = (heads + 1) * kComponents;
    for (int i = threadIdx.x; i < kCluster * entries; i += kWarps * kWarpSize) {
      int const to = i / entries, side = i % entries / kComponents, c = i % kComponents;
      float total = 0.f;
      for (int part = 0; part < num_parts(heads); ++part) total += warp_part[side][part][c];
      if constexpr (kCluster == 1) cta_part[0][side][c] = total;
      else store_async(cluster_address(&cta_part[rank][side][c], to), total, cluster_address(&full, to));
    }
  }

  CUTE_DEVICE float total(int side, int c, int) const {
    float sum = 0.f;
    CUTE_UNROLL
    for (int cta = 0; cta < kCluster; ++cta) sum += cta_part[cta][side][c];
    return sum;
  }
};

// The same sums where prepare.cuh made them.
struct PreparedSums {
  float const *q, *k;  // of the list's first q head, and of its KV head

  CUTE_DEVICE PreparedSums(SelectParams const& p, int q_row, int k_row)
      : q(p.q_totals + q_row * kComponents), k(p.k_totals + k_row * kComponents) {}

  CUTE_DEVICE float total(int side, int c, int heads) const { return side < heads ? q[side * kComponents + c] : k[c]; }
};

// r(X_z) / r(X) of method.md from energies added up over `blocks` blocks; the divisor is clamped: zeros give scores of 0.
CUTE_DEVICE float band_ratio(float part, float all, float blocks, float band_dims, float head_dim) {
  constexpr float kMinRms = 1e-6f;
  return sqrtf(part / (blocks * band_dims)) / fmaxf(sqrtf(all / (blocks * head_dim)), kMinRms);
}

// One component of a head's energies, added up over its first num_blocks blocks in an order that depends on that number alone.
CUTE_DEVICE float prefix_energy(float const* energy, int num_blocks, int component) {
  float sum = 0.f;
  #pragma unroll 4
  for (int block = threadIdx.x % kWarpSize; block < num_blocks; block += kWarpSize) sum += __ldg(energy + block * kComponents + component);
  return warp_sum(sum);
}

// The factor from the dot product of two means to a logit, 1 / (sqrt(band_dims) * tau), in units of log2.
// head: of the list, at (batch, head) row q_row + head. q_block: whose row it is; prefix calibration depends on it.
// kMayBePrefix: false where that is known to be off.
template <int kHighDims, int kLowDims, int kHeadDim, bool kMayBePrefix, class Energies>
CUTE_DEVICE float logit_scale(SelectParams const& p, Energies const& energies, int band, int head, int heads, int q_row, int k_row,
                              int q_block) {
  constexpr float kMinTau = 1e-6f, kLog2e = 1.4426950408889634f;
  float const band_dims = band == 0 ? kHighDims : kLowDims;
  float q_ratio, k_ratio;
  if (kMayBePrefix && p.prefix_calibration) {
    float const* q_energy = p.q_energy + (int64_t(q_row + head) * p.num_q_blocks + q_block) * kComponents;
    float const* k_energy = p.k_energy + int64_t(k_row) * p.k_capacity * kComponents;
    int const seen = p.num_visible(q_block);
    q_ratio = band_ratio(__ldg(q_energy + band), __ldg(q_energy + kAllDims), 1.f, band_dims, kHeadDim);
    k_ratio = band_ratio(prefix_energy(k_energy, seen, band), prefix_energy(k_energy, seen, kAllDims), float(seen), band_dims, kHeadDim);
  } else {
    auto const ratio = [&](int side, int blocks) {
      return band_ratio(energies.total(side, band, heads), energies.total(side, kAllDims, heads), float(blocks), band_dims, kHeadDim);
    };
    q_ratio = ratio(head, p.num_q_blocks);
    k_ratio = ratio(heads, p.num_k_blocks);
  }
  return kLog2e / (sqrtf(band_dims) * fmaxf(sqrtf(band_dims / kHeadDim) * q_ratio * k_ratio, kMinTau));
}

}  // namespace prism
