// subpool: the fp16 means of the sub-blocks of q and k, in one launch. Bound by memory: each of q and k is read once.
//
// A thread sums 8 dims of one sub-block of one head, token by token in fp32, with all of its 16-byte loads outstanding. So the same
// bits every run, whatever the batch, the launch or the chunk.
#pragma once

#include "pool/sm90/kernel.cuh"
#include "subpool/sm90/means.cuh"

namespace prism::subpool {

template <class Config>
struct Kernel {
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kRowThreads = kHeadDim / kChunkDims;  // threads across one mean
  static constexpr int kUnits = kThreads / kRowThreads;      // means of a CTA
  static_assert(kThreads % kRowThreads == 0, "threads must be whole means");

  CUTE_HOST_DEVICE static int num_ctas(Tensor const& t) { return (t.num_heads * t.num_subs + kUnits - 1) / kUnits; }

  // Adds tokens begin .. end - 1 of a sub-block of kTokens that starts at src.
  template <int kTokens>
  CUTE_DEVICE static void add(DimSum<kChunkDims>& sum, Element const* src, int64_t stride_token, int begin, int end) {
    uint4 window[kTokens];
    CUTE_UNROLL
    for (int i = 0; i < kTokens; ++i) {
      window[i] = make_uint4(0, 0, 0, 0);  // +0 in every 16-bit float: a sum that began at +0 keeps its bits
      if (i >= begin && i < end) window[i] = load_streaming(src + i * stride_token);
    }
    CUTE_UNROLL
    for (int i = 0; i < kTokens; ++i) sum.template add<Element>(window[i]);
  }

  CUTE_DEVICE static void run(Params const& p) {
    launch_dependents();
    bool const is_k = int(blockIdx.x) >= p.num_q_ctas;
    Tensor const& t = p.tensors[is_k];
    int const index = (blockIdx.x - (is_k ? p.num_q_ctas : 0)) * kUnits + threadIdx.x / kRowThreads, batch = blockIdx.y;
    if (index >= t.num_heads * t.num_subs) return;
    int const minor = t.heads_adjacent ? t.num_heads : t.num_subs, major_index = index / minor, minor_index = index % minor;
    int const head = t.heads_adjacent ? minor_index : major_index;
    int const sub = t.first_sub + (t.heads_adjacent ? major_index : minor_index);
    int const token = (sub << t.log2_sub) - t.first_token;  // in x; below 0 where the sub-block began before it
    int const begin = max(-token, 0), end = min(t.num_tokens - token, 1 << t.log2_sub), chunk = threadIdx.x % kRowThreads;
    int64_t const head_row = int64_t(batch) * t.num_heads + head;
    Element const* src = static_cast<Element const*>(t.x) + batch * t.stride_batch + head * t.stride_head + token * t.stride_token +
                         chunk * kChunkDims;
    DimSum<kChunkDims> sum;
    if (begin > 0) sum.load(t.tail_in + head_row * kHeadDim + chunk * kChunkDims);
    if (t.log2_sub == 2) add<4>(sum, src, t.stride_token, begin, end);
    else if (t.log2_sub == 3) add<8>(sum, src, t.stride_token, begin, end);
    else add<16>(sum, src, t.stride_token, begin, end);
    write_mean<kHeadDim>(t, sum, head_row, sub, end, chunk * kChunkDims);
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads) subpool_kernel(__grid_constant__ Params const p) {
  Kernel<Config>::run(p);
}

}  // namespace prism::subpool
