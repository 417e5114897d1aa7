// pool: the mean of one token block of one head per CTA, and the energies of its bands. Bound by memory: x is read once.
//
// A warp load covers whole rows (head_dim elements of one token) in 16-byte vectors; each thread keeps kInFlight of them
// outstanding. Sums run in fp32 in an order fixed by the thread count: the same bits every run, whatever the batch.
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

// Two 16-bit floats of one register, widened. A bf16 is the upper half of an fp32.
template <class Element>
CUTE_DEVICE float2 unpack(uint32_t pair) {
  if constexpr (cute::is_same_v<Element, cutlass::bfloat16_t>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  } else {
    return __half22float2(reinterpret_cast<__half2 const&>(pair));
  }
}

template <class Config>
struct PoolKernel {
  using Element = typename Config::Element;
  using High = typename Config::HighBand;
  using Low = typename Config::LowBand;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kBlockSize = Config::kBlockSize;  // tokens
  static constexpr int kThreads = Config::kThreads;

  static constexpr int kRowThreads = kHeadDim / kChunkDims;            // threads across one token's row
  static constexpr int kPassRows = kThreads / kRowThreads;             // tokens that the CTA reads at a time
  static constexpr int kPasses = kBlockSize / kPassRows;               // 16-byte loads of one thread
  static constexpr int kInFlight = kPasses < 8 ? kPasses : 8;          // 8 x 4 registers; more costs resident CTAs
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kLaneDims = kHeadDim / kWarpSize;               // dims per lane of the final warp
  static constexpr int kMinCtas = 1024 / kThreads;                     // 64 registers a thread

  static_assert(sizeof(Element) == 2, "a 16-byte vector must hold one chunk");
  static_assert(kHeadDim == 64 || kHeadDim == 128 || kHeadDim == 256, "a warp must hold whole rows");
  static_assert(kRowThreads <= kWarpSize && kThreads % kWarpSize == 0 && kBlockSize % kPassRows == 0 &&
                    kPasses % kInFlight == 0,
                "threads must divide the block into whole passes");

  struct SharedStorage {
    alignas(16) float partial[kWarps][kHeadDim];
  };

  // A lane's dims of a mean, stored as one vector.
  struct alignas(kLaneDims * sizeof(float)) Vector : cute::array<float, kLaneDims> {};
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

  // The sum of this thread's tokens row, row + kPassRows, ...; kFull: every one of them is valid.
  template <bool kFull>
  CUTE_DEVICE static Accumulator sum_rows(Element const* src, int64_t stride_token, int row, int valid) {
    Accumulator sum;
    cute::fill(sum, 0.f);
    Element const* ptr = src + row * stride_token;
    int64_t const step = kPassRows * stride_token;
    CUTE_UNROLL
    for (int pass = 0; pass < kPasses; pass += kInFlight) {
      uint4 raw[kInFlight];
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        raw[i] = make_uint4(0, 0, 0, 0);  // +0 in every 16-bit float
        if (kFull || row + (pass + i) * kPassRows < valid) raw[i] = load_streaming(ptr);
        ptr += step;
      }
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) add(sum, raw[i]);
    }
    return sum;
  }

  CUTE_DEVICE static void run(PoolParams const& p, SharedStorage& shared) {
    int const minor = p.heads_adjacent ? p.num_heads : p.num_blocks;
    int const unit_minor = blockIdx.x % minor, unit_major = blockIdx.x / minor;
    int const head = p.heads_adjacent ? unit_minor : unit_major;
    int const block = p.heads_adjacent ? unit_major : unit_minor;
    int const batch = blockIdx.y;

    int const thread = threadIdx.x, warp = thread / kWarpSize, lane = thread % kWarpSize;
    int const chunk = thread % kRowThreads, row = thread / kRowThreads;
    int const first_token = block * kBlockSize;
    int const valid = min(kBlockSize, p.seqlen - first_token);
    Element const* src = static_cast<Element const*>(p.x) + batch * p.stride_batch + head * p.stride_head +
                         first_token * p.stride_token + chunk * kChunkDims;

    Accumulator sum = valid == kBlockSize ? sum_rows<true>(src, p.stride_token, row, valid)
                                          : sum_rows<false>(src, p.stride_token, row, valid);
    CUTE_UNROLL
    for (int i = 0; i < kChunkDims; ++i) {
      CUTE_UNROLL
      for (int offset = kRowThreads; offset < kWarpSize; offset *= 2) {
        sum[i] += __shfl_xor_sync(kFullWarp, sum[i], offset);
      }
    }
    if (lane < kRowThreads) {
      float4* dst = reinterpret_cast<float4*>(&shared.partial[warp][chunk * kChunkDims]);
      dst[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      dst[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
    __syncthreads();
    if (warp == 0) {
      int64_t const out = (int64_t(batch) * p.num_heads + head) * p.num_blocks + block;
      finish(shared, lane, float(valid), p.mean + out * kHeadDim, p.energy + out * 3);
    }
  }

  // One warp: adds the warps' sums in order, divides, writes the mean and its energies.
  CUTE_DEVICE static void finish(SharedStorage const& shared, int lane, float valid, float* mean, float* energy) {
    int const first_dim = lane * kLaneDims;
    Vector value;
    cute::fill(value, 0.f);
    CUTE_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      CUTE_UNROLL
      for (int i = 0; i < kLaneDims; ++i) value[i] += shared.partial[w][first_dim + i];
    }
    float const inverse = __frcp_rn(valid);  // exact for a full block: a power of two
    float all = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < kLaneDims; ++i) {
      value[i] *= inverse;
      all += value[i] * value[i];
    }
    *reinterpret_cast<Vector*>(mean + first_dim) = value;
    int const chunk = first_dim / kChunkDims;  // kLaneDims divides kChunkDims: a lane lies in one chunk
    float const high = warp_sum(High::contains(chunk) ? all : 0.f);
    float const low = warp_sum(Low::contains(chunk) ? all : 0.f);
    all = warp_sum(all);
    if (lane == 0) {
      energy[0] = high;
      energy[1] = low;
      energy[2] = all;
    }
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, PoolKernel<Config>::kMinCtas) pool_kernel(PoolParams const p) {
  __shared__ typename PoolKernel<Config>::SharedStorage shared;
  PoolKernel<Config>::run(p, shared);
}

}  // namespace prism
