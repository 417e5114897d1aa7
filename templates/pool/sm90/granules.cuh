// What pool and rotate share: which granules a thread sums, and how a block's granules become its mean and energies.
// Owns the order of summation (method.md step 1). Must not load tokens.
#pragma once

#include "pool/params.h"
#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/config.hpp>
#include <cute/util/type_traits.hpp>
#include <cutlass/bfloat16.h>

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

// The fp32 sums of kDims contiguous dims, 4 or 8.
template <int kDims>
struct DimSum {
  float value[kDims] = {};

  // raw: uint2 or uint4, kDims 16-bit floats.
  template <class Element, class Raw>
  CUTE_DEVICE void add(Raw const& raw) {
    static_assert(sizeof(Raw) == 2 * kDims, "a 16-bit float for each sum");
    CUTE_UNROLL
    for (int i = 0; i < kDims / 2; ++i) {
      float2 const pair = unpack<Element>((&raw.x)[i]);
      value[2 * i] += pair.x;
      value[2 * i + 1] += pair.y;
    }
  }

  // src, dst: 16-byte aligned.
  CUTE_DEVICE void load(float const* src) {
    CUTE_UNROLL
    for (int i = 0; i < kDims; ++i) value[i] = src[i];
  }
  CUTE_DEVICE void store(float* dst) const {
    CUTE_UNROLL
    for (int i = 0; i < kDims / 4; ++i) {
      reinterpret_cast<float4*>(dst)[i] =
          make_float4(value[4 * i], value[4 * i + 1], value[4 * i + 2], value[4 * i + 3]);
    }
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

  // Behind a barrier, when every unit's sum is in `shared`: a warp takes every kWarps-th output of CTA `cta`.
  template <int kWarps>
  CUTE_DEVICE static void finish(PoolTensor const& t, int batch, int cta, SharedStorage const& shared) {
    int const cta_outputs = num_outputs(t), end = min(cta_outputs, t.num_heads * t.num_blocks - cta * cta_outputs);
    for (int i = threadIdx.x / kWarpSize; i < end; i += kWarps) {
      finish_output(t, PoolOutput(t, batch, cta * cta_outputs + i), &shared.sums[i], cta_outputs);
    }
  }

 private:
  // One warp: adds an output's granules in order, divides, writes the mean and its energies. A lane has dims lane + 32i.
  CUTE_DEVICE static void finish_output(PoolTensor const& t, PoolOutput const& output, float const (*sums)[kHeadDim],
                                        int cta_outputs) {
    int const lane = threadIdx.x % kWarpSize;
    int const granules = 1 << t.log2_granules, block_tokens = kGranuleTokens << t.log2_granules;
    int const tokens = min(block_tokens, t.first_token + t.num_tokens - output.block * block_tokens);
    // The last block, where it is not complete, leaves its sums for the next chunk.
    bool const leaves_tail = t.tail_out != nullptr && tokens < block_tokens;
    float* tail = t.tail_out + (output.head_row << t.log2_granules) * kHeadDim;
    float const valid = float(tokens);
    float* mean = t.mean + output.row * kHeadDim;
    float high = 0.f, low = 0.f, all = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < kLaneDims; ++i) {
      int const dim = lane + i * kWarpSize;
      float sum = 0.f;
      for (int granule = 0; granule < granules; ++granule) {
        float const part = sums[granule * cta_outputs][dim];
        sum += part;
        if (leaves_tail) tail[granule * kHeadDim + dim] = part;
      }
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
