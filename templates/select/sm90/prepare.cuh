// Means to halves (scores.cuh), once for all tiles that read them: 16 bytes of four floats become 16 bytes of their parts.
#pragma once

#include "select/params.h"
#include "select/sm90/calibrate.cuh"
#include "select/sm90/scores.cuh"
#include "shared/dependents.cuh"

namespace prism {

constexpr int kPrepareThreads = 256;

// Rows of q in their order.
template <int kHeadDim>
CUTE_DEVICE void prepare_queries(float const* mean, float const* energy, float* halves, int rows, int cta, int ctas) {
  constexpr int kRowVectors = kHeadDim / 4;
  auto const* source = reinterpret_cast<float4 const*>(mean);
  auto* target = reinterpret_cast<uint4*>(halves);
  #pragma unroll 4
  for (int i = cta * kPrepareThreads + threadIdx.x; i < rows * kRowVectors; i += ctas * kPrepareThreads) {
    target[i] = split_four(source[i], half_scale(energy[i / kRowVectors * kComponents + kAllDims]).up);
  }
}

// Rows of k as KeyHalves has them with their factors, and zeros up to whole groups.
template <int kHeadDim>
CUTE_DEVICE void prepare_keys(float const* mean, float const* energy, float* halves, int rows, int cta, int ctas) {
  using Halves = KeyHalves<kHeadDim>;
  constexpr int kRowVectors = kHeadDim / 4;
  auto const* source = reinterpret_cast<float4 const*>(mean);
  auto* target = reinterpret_cast<uint4*>(halves);
  #pragma unroll 4
  for (int i = cta * kPrepareThreads + threadIdx.x; i < num_groups(rows) * kGroupCols * kRowVectors; i += ctas * kPrepareThreads) {
    int const row = i / kRowVectors;
    uint4 x = make_uint4(0, 0, 0, 0);
    HalfScale scale{};
    if (row < rows) scale = half_scale(energy[row * kComponents + kAllDims]), x = split_four(source[i], scale.up);
    target[Halves::place(row, i % kRowVectors)] = x;
    if (i % kRowVectors == 0) halves[Halves::factor_place(row)] = scale.down;
  }
}

// The sums of `blocks` energies, in an order that depends on their number alone.
CUTE_DEVICE void prepare_total(float const* energy, int blocks, float* total) {
  constexpr int kWarps = kPrepareThreads / kWarpSize;
  __shared__ float parts[kWarps][kComponents];
  float sums[kComponents] = {};
  #pragma unroll 4
  for (int block = threadIdx.x; block < blocks; block += kPrepareThreads) {
    CUTE_UNROLL
    for (int c = 0; c < kComponents; ++c) sums[c] += energy[block * kComponents + c];
  }
  CUTE_UNROLL
  for (int c = 0; c < kComponents; ++c) {
    float const sum = warp_sum(sums[c]);
    if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize][c] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kComponents) return;
  float sum = 0.f;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp][threadIdx.x];
  total[threadIdx.x] = sum;
}

// gridDim: (slices of a KV head's means, then one for each of its q heads and one for itself; batch * num_kv_heads).
template <int kHeadDim>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(SelectParams const p) {
  int const row = blockIdx.y, heads = p.num_q_heads / p.num_kv_heads;
  launch_dependents();
  await_previous_kernels();
  int64_t const q_row = int64_t(row) * heads * p.num_q_blocks, k_row = int64_t(row) * p.k_capacity;
  int const slices = gridDim.x - heads - 1, slice = blockIdx.x, side = slice - slices;
  if (side == heads) {
    prepare_total(p.k_energy + k_row * kComponents, p.num_k_blocks, p.k_totals + row * kComponents);
  } else if (side >= 0) {
    prepare_total(p.q_energy + (q_row + int64_t(side) * p.num_q_blocks) * kComponents, p.num_q_blocks,
                  p.q_totals + (row * heads + side) * kComponents);
  } else {
    float const *mean = p.q_mean + q_row * kHeadDim, *energy = p.q_energy + q_row * kComponents;
    prepare_queries<kHeadDim>(mean, energy, p.q_halves + q_row * kHeadDim, heads * p.num_q_blocks, slice, slices);
    prepare_keys<kHeadDim>(p.k_mean + k_row * kHeadDim, p.k_energy + k_row * kComponents,
                           p.k_halves + row * KeyHalves<kHeadDim>::head_floats(p.num_k_blocks), p.num_k_blocks, slice, slices);
  }
}

}  // namespace prism
