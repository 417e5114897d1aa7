// Means to slabs of halves (long_params.h), once for all tiles that read them, and the sums of energies.
#pragma once

#include "select/sm90/calibrate.cuh"
#include "select/sm90/long/traits.cuh"
#include "select/sm90/prepare.cuh"
#include "select/sm90/scores.cuh"
#include "shared/dependents.cuh"

namespace prism {

// CTAs that prepare a KV head's key means, and those of its q heads. At 128x64 and 128K a thread has five chunks, in either.
constexpr int kKeySlices = 32, kQuerySlices = 64;

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

// A slice of a KV head's tiles: all chunks of both bands, and zeros for the rows behind a head's end. Tiles: of `heads` heads of `rows`
// rows, one behind the other. mean_of(head): of its first row. energy_of(head, row): what the row's halves are scaled by.
// place_of(row): where it goes in its tile.
template <class Traits, int kSlabBytes, int kTileRows, class MeanOf, class EnergyOf, class PlaceOf>
CUTE_DEVICE void prepare_slabs(unsigned char* slabs, int heads, int rows, int cta, int ctas, MeanOf const& mean_of,
                               EnergyOf const& energy_of, PlaceOf const& place_of) {
  constexpr int kSlabChunks = kSlabDims / kChunkDims, kRowChunks = Traits::kRowChunks;
  constexpr int kHighChunks = Traits::template kBandSlabs<typename Traits::High> * kSlabChunks;
  int const head_tiles = (rows + kTileRows - 1) / kTileRows;
  #pragma unroll 4
  for (int i = cta * kPrepareThreads + threadIdx.x; i < heads * head_tiles * kTileRows * kRowChunks; i += ctas * kPrepareThreads) {
    int const tile = i / (kTileRows * kRowChunks), place = i / kRowChunks % kTileRows, at = i % kRowChunks;
    int const head = tile / head_tiles, row = tile % head_tiles * kTileRows + place, own_row = min(row, rows - 1);
    int const chunk = at < kHighChunks ? chunk_at(typename Traits::High{}, at) : chunk_at(typename Traits::Low{}, at - kHighChunks);
    // Loads before any branch: those of several turns are under way together.
    auto const* source = reinterpret_cast<float4 const*>(mean_of(head) + int64_t(own_row) * Traits::kHeadDim + max(chunk, 0) * kChunkDims);
    float const up = half_scale(energy_of(head, own_row)).up;
    uint4 first = split_four(source[0], up), second = split_four(source[1], up);
    if (row >= rows || chunk < 0) first = second = make_uint4(0, 0, 0, 0);
    unsigned char* slab = slabs + (int64_t(tile) * Traits::kSlabs + at / kSlabChunks) * kSlabBytes;
    store_chunk(slab, place_of(place), at % kSlabChunks, make_uint4(first.x, first.y, second.x, second.y),
                make_uint4(first.z, first.w, second.z, second.w));
  }
}

// The largest energies of a head's blocks. Means scaled by the largest of all dims keep all their bits where they are 2^16 times shorter.
struct MostEnergy {
  float of[kComponents];
};

CUTE_DEVICE MostEnergy most_energy(float const* energy, int blocks) {
  constexpr int kWarps = kPrepareThreads / kWarpSize;
  __shared__ MostEnergy parts[kWarps];
  MostEnergy most{};
  #pragma unroll 4
  for (int block = threadIdx.x; block < blocks; block += kPrepareThreads) {
    CUTE_UNROLL
    for (int c = 0; c < kComponents; ++c) most.of[c] = fmaxf(most.of[c], energy[block * kComponents + c]);
  }
  CUTE_UNROLL
  for (int c = 0; c < kComponents; ++c) {
    most.of[c] = warp_max(most.of[c]);
    if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize].of[c] = most.of[c];
  }
  __syncthreads();
  CUTE_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) {
    CUTE_UNROLL
    for (int c = 0; c < kComponents; ++c) most.of[c] = fmaxf(most.of[c], parts[warp].of[c]);
  }
  return most;
}

// gridDim: (sums of energies of a KV head and of each of its q heads, then slices of its keys' means, then of its queries'; batch *
// num_kv_heads).
template <class Traits>
__global__ void __launch_bounds__(kPrepareThreads) prepare_long_kernel(LongParams const params) {
  SelectParams const& p = params.select;
  int const k_row = blockIdx.y, heads = p.num_q_heads / p.num_kv_heads, first_q_row = k_row * heads;
  launch_dependents();
  await_previous_kernels();
  int const head = int(blockIdx.x) - 1, key_slice = head - heads, query_slice = key_slice - kKeySlices;
  float const* k_energy = p.k_energy + int64_t(k_row) * p.k_capacity * kComponents;
  auto const q_energy = [&](int head) { return p.q_energy + int64_t(first_q_row + head) * p.num_q_blocks * kComponents; };
  if (head < 0) {
    prepare_total(k_energy, p.num_k_blocks, p.k_totals + k_row * kComponents);
    MostEnergy const most = most_energy(k_energy, p.num_k_blocks);
    if (threadIdx.x == 0) {
      auto const longest = [&](int band) { return half_length(most.of[band], most.of[kAllDims]); };
      params.k_facts[k_row] = {half_scale(most.of[kAllDims]).down, {longest(0), longest(1)}};
    }
    if (threadIdx.x == 0 && k_row == 0) *params.claimed = 0;
    uint32_t* const masked = params.masked_of(first_q_row, 0);
    for (int i = threadIdx.x; i < heads * params.num_row_tiles; i += kPrepareThreads) masked[i] = 0;
  } else if (head < heads) {
    prepare_total(q_energy(head), p.num_q_blocks, p.q_totals + (first_q_row + head) * kComponents);
  } else if (query_slice < 0) {
    float const most = most_energy(k_energy, p.num_k_blocks).of[kAllDims];
    float const* const mean = p.k_mean + int64_t(k_row) * p.k_capacity * Traits::kHeadDim;
    prepare_slabs<Traits, kKeySlabBytes, kLongColumns>(
        params.k_slabs + int64_t(k_row) * params.num_tiles * Traits::kSlabs * kKeySlabBytes, 1, p.num_k_blocks, key_slice, kKeySlices,
        [&](int) { return mean; }, [&](int, int) { return most; }, [](int column) { return place_in_tile(column); });
  } else {
    prepare_slabs<Traits, kQuerySlabBytes, kLongRows>(
        params.q_slabs + int64_t(first_q_row) * params.num_row_tiles * Traits::kSlabs * kQuerySlabBytes, heads, p.num_q_blocks, query_slice,
        kQuerySlices, [&](int head) { return p.q_mean + int64_t(first_q_row + head) * p.num_q_blocks * Traits::kHeadDim; },
        [&](int head, int row) { return q_energy(head)[int64_t(row) * kComponents + kAllDims]; }, [](int row) { return row; });
  }
}

}  // namespace prism
