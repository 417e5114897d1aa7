// pool: the means of the token blocks of q and k, and the energies of their bands, in one launch. Bound by memory: each
// of q and k is read once.
//
// A unit is one granule (32 tokens) of one block of one head; a thread sums 8 dims of it in the order of the tokens, and
// keeps kInFlight 16-byte loads outstanding. The granules of a block are then added in order. So a token's place in its
// block alone fixes the order of summation: the same bits every run, whatever the batch, the launch or the chunk.
#pragma once

#include "pool/params.h"
#include "shared/arch_guard.h"
#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/tensor.hpp>

namespace prism {

// 16 bytes past L1: every byte is used once. L2 fetches the other half of a 128-byte line, which a neighbour reads.
CUTE_DEVICE uint4 load_streaming(void const* address) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

// Lets the next kernel of the stream start its prologue, if it was launched to; it still waits for this grid's end
// before it reads what this grid writes.
CUTE_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

// Two 16-bit floats of one register, widened. A bf16 is the upper half of an fp32.
template <class Element>
CUTE_DEVICE float2 unpack(uint32_t pair) {
  if constexpr (cute::is_same_v<Element, cutlass::bfloat16_t>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  } else {
    return __half22float2(reinterpret_cast<__half2 const&>(pair));
  }
}

// Which block of which head: one output of the kernel.
struct PoolOutput {
  int head, block;  // block: in the sequence
  int64_t index;    // of the block's row in mean and energy

  CUTE_DEVICE PoolOutput(PoolTensor const& t, int batch, int output) {
    int const minor = t.heads_adjacent ? t.num_heads : t.num_blocks;
    int const major_index = output / minor, minor_index = output - major_index * minor;
    head = t.heads_adjacent ? minor_index : major_index;
    block = t.first_block + (t.heads_adjacent ? major_index : minor_index);
    index = (int64_t(batch) * t.num_heads + head) * t.capacity + block;
  }
};

template <class Config>
struct PoolKernel {
  using Element = typename Config::Element;
  using High = typename Config::HighBand;
  using Low = typename Config::LowBand;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kInFlight = Config::kInFlight;  // 16-byte loads of one thread, 4 registers each

  static constexpr int kRowThreads = kHeadDim / kChunkDims;  // threads across one token's row
  static constexpr int kUnits = kThreads / kRowThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kLaneDims = kHeadDim / kWarpSize;  // dims per lane of the warp that finishes an output
  static constexpr int kMaxGranules = 4;                  // of a block of 128 tokens

  static_assert(sizeof(Element) == 2, "a 16-byte vector must hold one chunk");
  static_assert(kHeadDim % kWarpSize == 0, "a warp must hold whole rows of a mean");
  static_assert(kThreads % kWarpSize == 0 && kThreads % kRowThreads == 0, "threads must be whole warps and whole units");
  static_assert((kUnits & (kUnits - 1)) == 0 && kUnits % kMaxGranules == 0, "units must split into whole blocks");
  static_assert(kGranuleTokens % kInFlight == 0, "a granule must be whole passes");

  struct SharedStorage {
    alignas(16) float sums[kUnits][kHeadDim];
  };
  using Accumulator = cute::array<float, kChunkDims>;

  CUTE_DEVICE static void add(Accumulator& sum, uint4 const& raw) {
    uint32_t const pairs[] = {raw.x, raw.y, raw.z, raw.w};
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims / 2; ++i) {
      float2 const value = unpack<Element>(pairs[i]);
      sum[2 * i] += value.x;
      sum[2 * i + 1] += value.y;
    }
  }

  static CUTE_DEVICE void store(float* dst, Accumulator const& sum) {
    reinterpret_cast<float4*>(dst)[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    reinterpret_cast<float4*>(dst)[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
  }

  // Adds a whole granule: each load is replaced by the one kInFlight tokens later as soon as it is used.
  CUTE_DEVICE static void add_granule(Accumulator& sum, Element const* src, int64_t stride_token) {
    uint4 window[kInFlight];
    CUTE_UNROLL
    for (int i = 0; i < kInFlight; ++i) window[i] = load_streaming(src + i * stride_token);
    CUTE_UNROLL
    for (int token = 0; token < kGranuleTokens; ++token) {
      uint4& slot = window[token % kInFlight];
      add(sum, slot);
      if (token + kInFlight < kGranuleTokens) slot = load_streaming(src + (token + kInFlight) * stride_token);
    }
  }

  // Adds the first num_tokens of a granule, in the same order.
  CUTE_DEVICE static void add_tokens(Accumulator& sum, Element const* src, int64_t stride_token, int num_tokens) {
    for (int first = 0; first < num_tokens; first += kInFlight) {
      uint4 window[kInFlight];
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        window[i] = make_uint4(0, 0, 0, 0);  // +0 in every 16-bit float: a sum that began at +0 keeps its bits
        if (first + i < num_tokens) window[i] = load_streaming(src + (first + i) * stride_token);
      }
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) add(sum, window[i]);
    }
  }

  // This thread's 8 dims of one granule, with what an earlier chunk left of it; its tokens past num_tokens are absent.
  CUTE_DEVICE static Accumulator granule_sum(PoolTensor const& t, PoolOutput const& output, int batch, int granule,
                                             int chunk) {
    int const granule_begin = ((output.block << t.log2_granules) + granule) * kGranuleTokens;
    int const begin = max(granule_begin, t.first_token);
    int const num_tokens = min(granule_begin + kGranuleTokens, t.first_token + t.num_tokens) - begin;
    Element const* src = static_cast<Element const*>(t.x) + batch * t.stride_batch + output.head * t.stride_head +
                         (begin - t.first_token) * t.stride_token + chunk * kChunkDims;
    Accumulator sum;
    cute::fill(sum, 0.f);
    if (num_tokens == kGranuleTokens) {
      add_granule(sum, src, t.stride_token);
      return sum;
    }
    int64_t const tail = (((int64_t(batch) * t.num_heads + output.head) << t.log2_granules) + granule) * kHeadDim;
    if (granule_begin < t.first_token) {
      CUTE_UNROLL
      for (int i = 0; i < kChunkDims; ++i) sum[i] = t.tail_in[tail + chunk * kChunkDims + i];
    }
    add_tokens(sum, src, t.stride_token, num_tokens);
    return sum;
  }

  CUTE_DEVICE static void run(PoolParams const& p, SharedStorage& shared) {
    launch_dependents();
    bool const is_k = int(blockIdx.x) >= p.num_q_ctas;
    PoolTensor const& t = p.tensors[is_k];
    int const cta = blockIdx.x - (is_k ? p.num_q_ctas : 0), batch = blockIdx.y;
    int const cta_outputs = kUnits >> t.log2_granules, num_outputs = t.num_heads * t.num_blocks;
    int const unit = threadIdx.x / kRowThreads, chunk = threadIdx.x % kRowThreads;

    int const granule = unit / cta_outputs, slot = unit % cta_outputs;
    if (int const index = cta * cta_outputs + slot; index < num_outputs) {
      PoolOutput const output(t, batch, index);
      Accumulator const sum = granule_sum(t, output, batch, granule, chunk);
      store(&shared.sums[unit][chunk * kChunkDims], sum);
      int const block_tokens = kGranuleTokens << t.log2_granules, end = t.first_token + t.num_tokens;
      if (t.tail_out != nullptr && end / block_tokens == output.block) {  // the last block, and not complete
        int64_t const row = ((int64_t(batch) * t.num_heads + output.head) << t.log2_granules) + granule;
        store(t.tail_out + row * kHeadDim + chunk * kChunkDims, sum);
      }
    }
    __syncthreads();
    int const warp = threadIdx.x / kWarpSize;
    for (int i = warp; i < cta_outputs && cta * cta_outputs + i < num_outputs; i += kWarps) {
      finish(t, PoolOutput(t, batch, cta * cta_outputs + i), &shared.sums[i], cta_outputs);
    }
  }

  // One warp: adds an output's granules in order, divides, writes the mean and its energies. A lane has dims lane + 32 i.
  CUTE_DEVICE static void finish(PoolTensor const& t, PoolOutput const& output, float const (*sums)[kHeadDim],
                                 int cta_outputs) {
    int const lane = threadIdx.x % kWarpSize;
    int const block_tokens = kGranuleTokens << t.log2_granules;
    float const valid = float(min(block_tokens, t.first_token + t.num_tokens - output.block * block_tokens));
    float* mean = t.mean + output.index * kHeadDim;
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
      float* energy = t.energy + output.index * 3;
      energy[0] = high;
      energy[1] = low;
      energy[2] = all;
    }
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinCtas)
    pool_kernel(__grid_constant__ PoolParams const p) {
  __shared__ typename PoolKernel<Config>::SharedStorage shared;
  PoolKernel<Config>::run(p, shared);
}

}  // namespace prism
