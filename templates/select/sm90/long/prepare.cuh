// Means to slabs of halves (long_params.h), once for all tiles that read them, and the sums of energies.
#pragma once

#include "select/sm90/calibrate.cuh"
#include "select/sm90/long/traits.cuh"
#include "select/sm90/prepare.cuh"
#include "select/sm90/scores.cuh"
#include "shared/dependents.cuh"

namespace prism {

// The chunk at a place of a band, -1 behind its end.
template <int... kList>
CUTE_DEVICE int chunk_at(ChunkList<kList...>, int place) {
  int chunk = -1, at = 0;
  ((chunk = at++ == place ? kList : chunk), ...);
  return chunk;
}

// Writes one chunk of 8 dims of a row: its high and low halves. slab: of the row's tile. place: of the row there.
CUTE_DEVICE void store_chunk(unsigned char* slab, int place, int chunk, uint4 const& high, uint4 const& low) {
  constexpr int kPiece = 16, kSlabChunks = kSlabDims / kChunkDims;
  unsigned char* row = slab + place * kSlabRowBytes;
  *reinterpret_cast<uint4*>(row + (chunk ^ place % 8) * kPiece) = high;
  *reinterpret_cast<uint4*>(row + ((chunk + kSlabChunks) ^ place % 8) * kPiece) = low;
}

// All chunks of both bands of `rows` rows, and zeros up to whole tiles of kTileRows. energy_of(row): what its halves are scaled by. place_of(row): where it goes.
template <class Traits, int kSlabBytes, int kTileRows, class EnergyOf, class PlaceOf>
CUTE_DEVICE void prepare_slabs(float const* mean, unsigned char* slabs, int rows, int tiles, int cta, int ctas, EnergyOf const& energy_of,
                               PlaceOf const& place_of) {
  constexpr int kSlabChunks = kSlabDims / kChunkDims, kRowChunks = Traits::kSlabs * kSlabChunks;
  constexpr int kHighChunks = Traits::template kBandSlabs<typename Traits::High> * kSlabChunks;
  #pragma unroll 2
  for (int i = cta * kPrepareThreads + threadIdx.x; i < tiles * kTileRows * kRowChunks; i += ctas * kPrepareThreads) {
    int const row = i / kRowChunks, at = i % kRowChunks;
    int const chunk = at < kHighChunks ? chunk_at(typename Traits::High{}, at) : chunk_at(typename Traits::Low{}, at - kHighChunks);
    uint4 high = make_uint4(0, 0, 0, 0), low = high;
    if (row < rows && chunk >= 0) {
      float const up = half_scale(energy_of(row)).up;
      auto const* source = reinterpret_cast<float4 const*>(mean + int64_t(row) * Traits::kHeadDim + chunk * kChunkDims);
      uint4 const first = split_four(source[0], up), second = split_four(source[1], up);
      high = make_uint4(first.x, first.y, second.x, second.y);
      low = make_uint4(first.z, first.w, second.z, second.w);
    }
    unsigned char* slab = slabs + (int64_t(row / kTileRows) * Traits::kSlabs + at / kSlabChunks) * kSlabBytes;
    store_chunk(slab, place_of(row % kTileRows), at % kSlabChunks, high, low);
  }
}

// The largest energy of a head's blocks, all dims. Scaled by it, means that are 2^16 times shorter still have all their bits.
CUTE_DEVICE float most_energy(float const* energy, int blocks) {
  constexpr int kWarps = kPrepareThreads / kWarpSize;
  __shared__ float parts[kWarps];
  float most = 0.f;
  #pragma unroll 4
  for (int block = threadIdx.x; block < blocks; block += kPrepareThreads) most = fmaxf(most, energy[block * kComponents + kAllDims]);
  most = warp_max(most);
  if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = most;
  __syncthreads();
  most = 0.f;
  CUTE_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) most = fmaxf(most, parts[warp]);
  return most;
}

// gridDim: (slices of a KV head's means, then one for each of its q heads and one for itself; batch * num_kv_heads).
template <class Traits>
__global__ void __launch_bounds__(kPrepareThreads) prepare_long_kernel(LongParams const params) {
  SelectParams const& p = params.select;
  int const k_row = blockIdx.y, heads = p.num_q_heads / p.num_kv_heads;
  launch_dependents();
  await_previous_kernels();
  int const slices = gridDim.x - heads - 1, slice = blockIdx.x, side = slice - slices;
  float const* k_energy = p.k_energy + int64_t(k_row) * p.k_capacity * kComponents;
  if (side == heads) {
    prepare_total(k_energy, p.num_k_blocks, p.k_totals + k_row * kComponents);
    float const most = most_energy(k_energy, p.num_k_blocks);
    if (threadIdx.x == 0) params.k_down[k_row] = half_scale(most).down;
  } else if (side >= 0) {
    int const q_row = k_row * heads + side;
    prepare_total(p.q_energy + int64_t(q_row) * p.num_q_blocks * kComponents, p.num_q_blocks, p.q_totals + q_row * kComponents);
  } else {
    for (int head = 0; head < heads; ++head) {
      int const q_row = k_row * heads + head;
      float const* energy = p.q_energy + int64_t(q_row) * p.num_q_blocks * kComponents;
      prepare_slabs<Traits, kQuerySlabBytes, kLongRows>(
          p.q_mean + int64_t(q_row) * p.num_q_blocks * Traits::kHeadDim,
          params.q_slabs + int64_t(q_row) * params.num_row_tiles * Traits::kSlabs * kQuerySlabBytes, p.num_q_blocks, params.num_row_tiles, slice, slices,
          [&](int row) { return energy[int64_t(row) * kComponents + kAllDims]; }, [](int row) { return row; });
    }
    float const most = most_energy(k_energy, p.num_k_blocks);
    prepare_slabs<Traits, kKeySlabBytes, kLongColumns>(
        p.k_mean + int64_t(k_row) * p.k_capacity * Traits::kHeadDim,
        params.k_slabs + int64_t(k_row) * params.num_tiles * Traits::kSlabs * kKeySlabBytes, p.num_k_blocks, params.num_tiles, slice,
        slices, [&](int) { return most; }, [](int column) { return place_in_tile(column); });
  }
}

}  // namespace prism
