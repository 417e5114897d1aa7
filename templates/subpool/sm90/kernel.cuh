// subpool: the fp16 means of the sub-blocks of q and k, in one launch. Bound by memory: each of q and k is read once.
//
// A thread sums 8 dims of one sub-block of one head, token by token in fp32, with all of its 16-byte loads outstanding. So the same
// bits every run, whatever the batch, the launch or the chunk. fp16 holds a mean to 2^-11, eight times closer than bf16; one beyond
// its range of 65504 becomes 65504.
#pragma once

#include "pool/sm90/kernel.cuh"
#include "score/params.h"
#include "subpool/params.h"

namespace prism::subpool {

// Two means as fp16, the first in the lower half. NaN stays NaN.
CUTE_DEVICE uint32_t to_halves(float first, float second) {
  uint32_t result;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

// Where sub-column `sub` lies among k's means (score/sm90/traits.cuh has the reason).
CUTE_HOST_DEVICE int place_in_tiles(int sub) {
  constexpr int kTile = score::kTileColumns, kQuadColumns = kTile / 4;
  int const in_tile = sub % kTile, owner = in_tile / kQuadColumns, index = in_tile % kQuadColumns;
  return sub - in_tile + index / 2 * 8 + owner * 2 + index % 2;
}

template <class Config>
struct Kernel {
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kRowThreads = kHeadDim / kChunkDims;  // threads across one mean
  static constexpr int kUnits = kThreads / kRowThreads;      // means of a CTA
  static_assert(kThreads % kRowThreads == 0, "threads must be whole means");

  CUTE_HOST_DEVICE static int num_ctas(Tensor const& t) { return (t.num_heads * t.num_subs + kUnits - 1) / kUnits; }

  // The mean of the first num_tokens of a sub-block of kTokens.
  template <int kTokens>
  CUTE_DEVICE static void mean(DimSum<kChunkDims>& sum, Element const* src, int64_t stride_token, int num_tokens) {
    uint4 window[kTokens];
    CUTE_UNROLL
    for (int i = 0; i < kTokens; ++i) {
      window[i] = make_uint4(0, 0, 0, 0);  // +0 in every 16-bit float: a sum that began at +0 keeps its bits
      if (i < num_tokens) window[i] = load_streaming(src + i * stride_token);
    }
    CUTE_UNROLL
    for (int i = 0; i < kTokens; ++i) sum.template add<Element>(window[i]);
    float const valid = float(num_tokens);
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims; ++i) sum.value[i] = __fdiv_rn(sum.value[i], valid);
  }

  CUTE_DEVICE static void run(Params const& p) {
    launch_dependents();
    bool const is_k = int(blockIdx.x) >= p.num_q_ctas;
    Tensor const& t = p.tensors[is_k];
    int const index = (blockIdx.x - (is_k ? p.num_q_ctas : 0)) * kUnits + threadIdx.x / kRowThreads, batch = blockIdx.y;
    if (index >= t.num_heads * t.num_subs) return;
    int const minor = t.heads_adjacent ? t.num_heads : t.num_subs, major_index = index / minor, minor_index = index % minor;
    int const head = t.heads_adjacent ? minor_index : major_index;
    int const sub = t.first_sub + (t.heads_adjacent ? major_index : minor_index), token = sub << t.log2_sub;
    int const chunk = threadIdx.x % kRowThreads, num_tokens = t.num_tokens - token;
    Element const* src = static_cast<Element const*>(t.x) + batch * t.stride_batch + head * t.stride_head + token * t.stride_token +
                         chunk * kChunkDims;
    DimSum<kChunkDims> sum;
    if (t.log2_sub == 2) mean<4>(sum, src, t.stride_token, min(num_tokens, 4));
    else if (t.log2_sub == 3) mean<8>(sum, src, t.stride_token, min(num_tokens, 8));
    else mean<16>(sum, src, t.stride_token, min(num_tokens, 16));
    int64_t const row = (int64_t(batch) * t.num_heads + head) * t.capacity + (t.in_tile_order ? place_in_tiles(sub) : sub);
    uint4 const halves = make_uint4(to_halves(sum.value[0], sum.value[1]), to_halves(sum.value[2], sum.value[3]),
                                    to_halves(sum.value[4], sum.value[5]), to_halves(sum.value[6], sum.value[7]));
    reinterpret_cast<uint4*>(t.means)[row * kRowThreads + chunk] = halves;
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads) subpool_kernel(__grid_constant__ Params const p) {
  Kernel<Config>::run(p);
}

}  // namespace prism::subpool
