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

// All chunks of both bands of `rows` rows, and zeros up to whole tiles of kTileRows. slab_of(row), place_of(row): where a row goes.
template <class Traits, int kSlabBytes, int kTileRows, class PlaceOf>
CUTE_DEVICE void prepare_slabs(float const* mean, float const* energy, unsigned char* slabs, int rows, int tiles, int cta, int ctas,
                               PlaceOf const& place_of) {
  constexpr int kSlabChunks = kSlabDims / kChunkDims, kRowChunks = Traits::kSlabs * kSlabChunks;
  constexpr int kHighChunks = Traits::template kBandSlabs<typename Traits::High> * kSlabChunks;
  #pragma unroll 2
  for (int i = cta * kPrepareThreads + threadIdx.x; i < tiles * kTileRows * kRowChunks; i += ctas * kPrepareThreads) {
    int const row = i / kRowChunks, at = i % kRowChunks;
    int const chunk = at < kHighChunks ? chunk_at(typename Traits::High{}, at) : chunk_at(typename Traits::Low{}, at - kHighChunks);
    uint4 high = make_uint4(0, 0, 0, 0), low = high;
    if (row < rows && chunk >= 0) {
      float const up = half_scale(energy[int64_t(row) * kComponents + kAllDims]).up;
      auto const* source = reinterpret_cast<float4 const*>(mean + int64_t(row) * Traits::kHeadDim + chunk * kChunkDims);
      uint4 const first = split_four(source[0], up), second = split_four(source[1], up);
      high = make_uint4(first.x, first.y, second.x, second.y);
      low = make_uint4(first.z, first.w, second.z, second.w);
    }
    unsigned char* slab = slabs + (int64_t(row / kTileRows) * Traits::kSlabs + at / kSlabChunks) * kSlabBytes;
    store_chunk(slab, place_of(row % kTileRows), at % kSlabChunks, high, low);
  }
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
  } else if (side >= 0) {
    int const q_row = k_row * heads + side;
    prepare_total(p.q_energy + int64_t(q_row) * p.num_q_blocks * kComponents, p.num_q_blocks, p.q_totals + q_row * kComponents);
  } else {
    for (int head = 0; head < heads; ++head) {
      int const q_row = k_row * heads + head;
      prepare_slabs<Traits, kQuerySlabBytes, kLongRows>(
          p.q_mean + int64_t(q_row) * p.num_q_blocks * Traits::kHeadDim, p.q_energy + int64_t(q_row) * p.num_q_blocks * kComponents,
          params.q_slabs + int64_t(q_row) * params.num_row_tiles * Traits::kSlabs * kQuerySlabBytes, p.num_q_blocks,
          params.num_row_tiles, slice, slices, [](int row) { return row; });
    }
    prepare_slabs<Traits, kKeySlabBytes, kLongColumns>(
        p.k_mean + int64_t(k_row) * p.k_capacity * Traits::kHeadDim, k_energy,
        params.k_slabs + int64_t(k_row) * params.num_tiles * Traits::kSlabs * kKeySlabBytes, p.num_k_blocks, params.num_tiles, slice,
        slices, [](int column) { return place_in_tile(column); });
    float* down = params.k_down + int64_t(k_row) * params.num_tiles * kLongColumns;
    for (int i = slice * kPrepareThreads + threadIdx.x; i < params.num_tiles * kLongColumns; i += slices * kPrepareThreads) {
      int const owner = i % kLongColumns / 32, index = i % 32;
      down[i - i % kLongColumns + index / 4 * 16 + owner * 4 + index % 4] =
          i < p.num_k_blocks ? half_scale(k_energy[i * kComponents + kAllDims]).down : 1.f;
    }
  }
}

}  // namespace prism
