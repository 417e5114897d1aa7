// Key means to slabs of halves (long_params.h), once for all rows that read them, and the sums of energies.
#pragma once

#include "select/sm90/calibrate.cuh"
#include "select/sm90/long/slabs.cuh"
#include "select/sm90/prepare.cuh"
#include "shared/dependents.cuh"

namespace prism {

constexpr int kKeySlices = 64;  // most CTAs that prepare a KV head's key means: each looks for the largest energy of all

// What a warp and a CTA take at a time, and how many CTAs an SM has registers for. Many warps with few rows each, so that their loads are
// under way at once (short rows lie two to a load: 8 are the fewest); with 32 registers ptxas spills at other head dims.
template <class Traits>
struct PrepareShape {
  static constexpr int kWarpRows = Traits::kHeadDim < 128 ? 8 : 4, kRows = kPrepareThreads / kWarpSize * kWarpRows;
  static constexpr int kParts = kLongColumns / kRows;  // of a tile
  static constexpr int kSmCtas = Traits::kHeadDim == 128 ? 8 : 4;
};

// The largest energies of a head's blocks. Means scaled by the largest of all dims keep all their bits where they are 2^16 times shorter.
struct MostEnergy {
  float of[kComponents];
};

// kFrom: the components before it are not asked for.
template <int kFrom>
CUTE_DEVICE MostEnergy most_energy(float const* energy, int blocks) {
  constexpr int kWarps = kPrepareThreads / kWarpSize;
  __shared__ MostEnergy parts[kWarps];
  MostEnergy most{};
  #pragma unroll 4
  for (int block = threadIdx.x; block < blocks; block += kPrepareThreads) {
    CUTE_UNROLL
    for (int c = kFrom; c < kComponents; ++c) most.of[c] = fmaxf(most.of[c], energy[block * kComponents + c]);
  }
  CUTE_UNROLL
  for (int c = kFrom; c < kComponents; ++c) {
    most.of[c] = warp_max(most.of[c]);
    if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize].of[c] = most.of[c];
  }
  __syncthreads();
  CUTE_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) {
    CUTE_UNROLL
    for (int c = kFrom; c < kComponents; ++c) most.of[c] = fmaxf(most.of[c], parts[warp].of[c]);
  }
  return most;
}

// A slice of a KV head's keys: parts of tiles.
template <class Traits>
CUTE_DEVICE void prepare_keys(LongParams const& params, int k_row, int slice) {
  using Shape = PrepareShape<Traits>;
  SelectParams const& p = params.select;
  float const* const mean = p.k_mean + int64_t(k_row) * p.k_capacity * Traits::kHeadDim;
  float const* const energy = p.k_energy + int64_t(k_row) * p.k_capacity * kComponents;
  uint32_t const warp_row = threadIdx.x / kWarpSize * Shape::kWarpRows;
  float up = 0.f;
  #pragma unroll 1
  for (int part = slice; part < params.num_tiles * Shape::kParts; part += params.key_slices) {
    int const tile = part / Shape::kParts, row = part * Shape::kRows + int(warp_row);
    uint32_t const first = uint32_t(part) % Shape::kParts * Shape::kRows + warp_row;
    // Loads are under way while energies are looked at.
    SlabRows<Traits, Shape::kWarpRows> rows(mean + int64_t(row) * Traits::kHeadDim, p.num_k_blocks - row);
    if (part == slice) up = half_scale(most_energy<kAllDims>(energy, p.num_k_blocks).of[kAllDims]).up;
    rows.store(params.k_slabs + (int64_t(k_row) * params.num_tiles + tile) * Traits::kSlabs * kKeySlabBytes, up,
               [&](uint32_t row) { return place_in_tile(first + row); });
  }
}

// What is known of a KV head's key means, and counters that are to begin at 0.
CUTE_DEVICE void prepare_facts(LongParams const& params, int k_row, int heads) {
  SelectParams const& p = params.select;
  uint32_t* const masked = params.masked_of(k_row * heads, 0);
  for (int i = threadIdx.x; i < heads * params.num_row_tiles; i += kPrepareThreads) masked[i] = 0;
  MostEnergy const most = most_energy<0>(p.k_energy + int64_t(k_row) * p.k_capacity * kComponents, p.num_k_blocks);
  if (threadIdx.x > 0) return;
  auto const longest = [&](int band) { return half_length(most.of[band], most.of[kAllDims]); };
  params.k_facts[k_row] = {half_scale(most.of[kAllDims]).down, {longest(0), longest(1)}};
  if (k_row == 0) *params.claimed = 0;
}

// gridDim: (slices of a KV head's keys, its facts, sums of energies of each of its q heads and of its own; batch * num_kv_heads).
template <class Traits>
__global__ void __launch_bounds__(kPrepareThreads, PrepareShape<Traits>::kSmCtas)
    prepare_long_kernel(__grid_constant__ LongParams const params) {
  SelectParams const& p = params.select;
  int const k_row = blockIdx.y, heads = p.num_q_heads / p.num_kv_heads, slice = blockIdx.x, side = slice - params.key_slices - 1;
  launch_dependents();
  await_previous_kernels();
  if (side < -1) {
    prepare_keys<Traits>(params, k_row, slice);
  } else if (side < 0) {
    prepare_facts(params, k_row, heads);
  } else if (side < heads) {
    int const q_row = k_row * heads + side;
    prepare_total(p.q_energy + int64_t(q_row) * p.num_q_blocks * kComponents, p.num_q_blocks, p.q_totals + q_row * kComponents);
  } else {
    prepare_total(p.k_energy + int64_t(k_row) * p.k_capacity * kComponents, p.num_k_blocks, p.k_totals + k_row * kComponents);
  }
}

}  // namespace prism
