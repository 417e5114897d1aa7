// pool: the means of the token blocks of q and k, and the energies of their bands, in one launch. Bound by memory: each
// of q and k is read once.
//
// A unit is one granule (32 tokens) of one block of one head; a thread sums 8 dims of it in the order of the tokens, and
// keeps kInFlight 16-byte loads outstanding. The granules of a block are then added in order. So a token's place in its
// block alone fixes the order of summation: the same bits every run, whatever the batch, the launch or the chunk.
#pragma once

#include "pool/sm90/granules.cuh"
#include "shared/arch_guard.h"
#include "shared/dependents.cuh"

namespace prism {

// 16 bytes past L1: every byte is used once. L2 fetches the other half of a 128-byte line, which a neighbour reads.
CUTE_DEVICE uint4 load_streaming(void const* address) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

template <class Config>
struct PoolKernel {
  using Element = typename Config::Element;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kInFlight = Config::kInFlight;  // 16-byte loads of one thread, 4 registers each

  static constexpr int kRowThreads = kHeadDim / kChunkDims;  // threads across one token's row
  static constexpr int kUnits = kThreads / kRowThreads;
  using Tile = PoolTile<kHeadDim, kUnits, typename Config::HighBand, typename Config::LowBand>;

  static_assert(sizeof(Element) == 2, "a 16-byte vector must hold one chunk");
  static_assert(kThreads % kWarpSize == 0 && kThreads % kRowThreads == 0, "threads must be whole warps and whole units");
  static_assert(kGranuleTokens % kInFlight == 0, "a granule must be whole passes");

  // Adds a whole granule: each load is replaced by the one kInFlight tokens later as soon as it is used.
  CUTE_DEVICE static void add_granule(DimSum<kChunkDims>& sum, Element const* src, int64_t stride_token) {
    uint4 window[kInFlight];
    CUTE_UNROLL
    for (int i = 0; i < kInFlight; ++i) window[i] = load_streaming(src + i * stride_token);
    CUTE_UNROLL
    for (int token = 0; token < kGranuleTokens; ++token) {
      uint4& slot = window[token % kInFlight];
      sum.template add<Element>(slot);
      if (token + kInFlight < kGranuleTokens) slot = load_streaming(src + (token + kInFlight) * stride_token);
    }
  }

  // Adds the first num_tokens of a granule, in the same order.
  CUTE_DEVICE static void add_tokens(DimSum<kChunkDims>& sum, Element const* src, int64_t stride_token, int num_tokens) {
    for (int first = 0; first < num_tokens; first += kInFlight) {
      uint4 window[kInFlight];
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        window[i] = make_uint4(0, 0, 0, 0);  // +0 in every 16-bit float: a sum that began at +0 keeps its bits
        if (first + i < num_tokens) window[i] = load_streaming(src + (first + i) * stride_token);
      }
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) sum.template add<Element>(window[i]);
    }
  }

  CUTE_DEVICE static void run(PoolParams const& p, typename Tile::SharedStorage& shared) {
    launch_dependents();
    bool const is_k = int(blockIdx.x) >= p.num_q_ctas;
    PoolTensor const& t = p.tensors[is_k];
    int const cta = blockIdx.x - (is_k ? p.num_q_ctas : 0), batch = blockIdx.y;
    int const cta_outputs = Tile::num_outputs(t);
    int const unit = threadIdx.x / kRowThreads, chunk = threadIdx.x % kRowThreads;
    if (int const index = cta * cta_outputs + unit % cta_outputs; index < t.num_heads * t.num_blocks) {
      PoolOutput const output(t, batch, index);
      Granule const granule(t, output, unit / cta_outputs);
      Element const* src = static_cast<Element const*>(t.x) + batch * t.stride_batch + output.head * t.stride_head +
                           granule.begin * t.stride_token + chunk * kChunkDims;
      DimSum<kChunkDims> sum;
      if (granule.num_tokens == kGranuleTokens) {
        add_granule(sum, src, t.stride_token);
      } else {
        if (granule.goes_on) sum.load(t.tail_in + granule.tail * kHeadDim + chunk * kChunkDims);
        add_tokens(sum, src, t.stride_token, granule.num_tokens);
      }
      sum.store(&shared.sums[unit][chunk * kChunkDims]);
    }
    __syncthreads();
    Tile::template finish<kThreads / kWarpSize>(t, batch, cta, shared);
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinCtas)
    pool_kernel(__grid_constant__ PoolParams const p) {
  __shared__ typename PoolKernel<Config>::Tile::SharedStorage shared;
  PoolKernel<Config>::run(p, shared);
}

}  // namespace prism
