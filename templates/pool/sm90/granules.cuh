// What pool and rotate share: which granules a thread sums, and how a block's granules become its mean and energies.
// Owns the order of summation (method.md step 1). Must not load tokens.
#pragma once

#include "pool/params.h"
#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/tensor.hpp>

namespace prism {

// Two 16-bit floats of one register, widened. A bf16 is the upper half of an fp32.
template <class Element>
CUTE_DEVICE float2 unpack(uint32_t pair) {
  if constexpr (cute::is_same_v<Element, cutlass::bfloat16_t>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  } else {
    return __half22float2(reinterpret_cast<__half2 const&>(pair));
  }
}

// The fp32 sums of 8 dims.
struct ChunkSum {
  float value[kChunkDims] = {};

  template <class Element>
  CUTE_DEVICE void add(uint4 const& raw) {
    uint32_t const pairs[] = {raw.x, raw.y, raw.z, raw.w};
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims / 2; ++i) {
      float2 const pair = unpack<Element>(pairs[i]);
      value[2 * i] += pair.x;
      value[2 * i + 1] += pair.y;
    }
  }

  // src, dst: 16-byte aligned.
  CUTE_DEVICE void load(float const* src) {
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims; ++i) value[i] = src[i];
  }
  CUTE_DEVICE void store(float* dst) const {
    reinterpret_cast<float4*>(dst)[0] = make_float4(value[0], value[1], value[2], value[3]);
    reinterpret_cast<float4*>(dst)[1] = make_float4(value[4], value[5], value[6], value[7]);
  }
};

// Which block of which head: one output of the kernel.
struct PoolOutput {
  int head, block;  // block: in the sequence
  int64_t head_row, row;  // of the head among the batch's, of the block in mean and energy

  CUTE_DEVICE PoolOutput(PoolTensor const& t, int batch, int output) {
    int const minor = t.heads_adjacent ? t.num_heads : t.num_blocks;
    int const major_index = output / minor, minor_index = output - major_index * minor;
    head = t.heads_adjacent ? minor_index : major_index;
    block = t.first_block + (t.heads_adjacent ? major_index : minor_index);
    head_row = int64_t(batch) * t.num_heads + head;
    row = head_row * t.capacity + block;
  }
};

// One granule of an output: the tokens of x in it, and where its sum is kept between chunks.
struct Granule {
  int begin;       // first token, counted in x
  int num_tokens;  // of x in it, 32 but at the ends of x; 0 or less where there is none
  bool goes_on;    // an earlier chunk summed its first tokens, or all of them
  int64_t tail;    // row of tail_in and tail_out

  CUTE_DEVICE Granule(PoolTensor const& t, PoolOutput const& output, int granule) {
    int const first = ((output.block << t.log2_granules) + granule) * kGranuleTokens - t.first_token;
    begin = max(first, 0);
    num_tokens = min(first + kGranuleTokens, t.num_tokens) - begin;
    goes_on = first < 0;
    tail = (output.head_row << t.log2_granules) + granule;
  }
};

// A CTA takes kUnits granules: those of kUnits / granules-per-block outputs that lie side by side.
template <int kHeadDim, int kUnits, class High, class Low>
struct PoolTile {
  static constexpr int kLaneDims = kHeadDim / kWarpSize;  // dims per lane of the warp that finishes an output
  static constexpr int kMaxGranules = 4;                  // of a block of 128 tokens

  static_assert(kHeadDim % kWarpSize == 0, "a warp must hold whole rows of a mean");
  static_assert((kUnits & (kUnits - 1)) == 0 && kUnits % kMaxGranules == 0, "units must split into whole blocks");

  struct SharedStorage {
    alignas(16) float sums[kUnits][kHeadDim];
  };

  CUTE_HOST_DEVICE static int num_outputs(PoolTensor const& t) { return kUnits >> t.log2_granules; }

  CUTE_HOST_DEVICE static int num_ctas(PoolTensor const& t) {
    return (t.num_heads * t.num_blocks + num_outputs(t) - 1) / num_outputs(t);
  }

  // Keeps the sum of 8 dims for finish, and for the next chunk where the last block is not complete.
  CUTE_DEVICE static void keep(PoolTensor const& t, PoolOutput const& output, Granule const& granule, int unit,
                               int chunk, ChunkSum const& sum, SharedStorage& shared) {
    sum.store(&shared.sums[unit][chunk * kChunkDims]);
    int const block_tokens = kGranuleTokens << t.log2_granules, end = t.first_token + t.num_tokens;
    if (t.tail_out != nullptr && end / block_tokens == output.block) {
      sum.store(t.tail_out + granule.tail * kHeadDim + chunk * kChunkDims);
    }
  }

  // Behind a barrier that follows keep: a warp takes every kWarps-th output of CTA `cta`.
  template <int kWarps>
  CUTE_DEVICE static void finish(PoolTensor const& t, int batch, int cta, SharedStorage const& shared) {
    int const cta_outputs = num_outputs(t), end = min(cta_outputs, t.num_heads * t.num_blocks - cta * cta_outputs);
    for (int i = threadIdx.x / kWarpSize; i < end; i += kWarps) {
      finish_output(t, PoolOutput(t, batch, cta * cta_outputs + i), &shared.sums[i], cta_outputs);
    }
  }

 private:
  // One warp: adds an output's granules in order, divides, writes the mean and its energies. A lane has dims lane + 32 i.
  CUTE_DEVICE static void finish_output(PoolTensor const& t, PoolOutput const& output, float const (*sums)[kHeadDim],
                                        int cta_outputs) {
    int const lane = threadIdx.x % kWarpSize;
    int const block_tokens = kGranuleTokens << t.log2_granules;
    float const valid = float(min(block_tokens, t.first_token + t.num_tokens - output.block * block_tokens));
    float* mean = t.mean + output.row * kHeadDim;
    float high = 0.f, low = 0.f, all = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < kLaneDims; ++i) {
      int const dim = lane + i * kWarpSize;
      float sum = 0.f;
      for (int granule = 0; granule < (1 << t.log2_granules); ++granule) sum += sums[granule * cta_outputs][dim];
      float const value = __fdiv_rn(sum, valid), square = value * value;
      mean[dim] = value;
      int const chunk = dim / kChunkDims;
      high += High::contains(chunk) ? square : 0.f;
      low += Low::contains(chunk) ? square : 0.f;
      all += square;
    }
    high = warp_sum(high);
    low = warp_sum(low);
    all = warp_sum(all);
    if (lane == 0) {
      float* energy = t.energy + output.row * 3;
      energy[0] = high;
      energy[1] = low;
      energy[2] = all;
    }
  }
};

}  // namespace prism
