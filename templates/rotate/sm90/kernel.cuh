// rotate: RoPE of q and k, and with it what pool or subpool makes of the rotated tokens, in one pass. Bound by memory: each of
// q and k is read once and written once; cos and sin come from L1 and L2, since the heads of a token share them.
//
// The granules are pool's. A thread has two chunks of 8 dims, first_chunk and second_chunk, that lie half the rotary dims
// apart: in the half-split layout they hold the two dims of 8 pairs, in the interleaved one 4 whole pairs each. Threads
// behind the rotary dims copy theirs. Sums are taken of the rounded, rotated values in pool's order: the bits of pool, and
// where sub-blocks are wanted, which lie whole in granules, of subpool.
#pragma once

#include "pool/sm90/granules.cuh"
#include "rotate/params.h"
#include "rotate/sm90/rotation.cuh"
#include "shared/arch_guard.h"
#include "shared/dependents.cuh"
#include "subpool/sm90/means.cuh"

namespace prism {

// 16 bytes past L1: every byte is used once. Not through the read-only path: out may be x.
CUTE_DEVICE uint4 load_once(void const* address) {
  uint4 v;
  asm("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address));
  return v;
}

// From one token to the next, in elements.
struct RotateStrides {
  int64_t token, out, table;
};

template <class Config>
struct RotateKernel {
  using Element = typename Config::Element;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRotaryDim = Config::kRotaryDim;
  static constexpr bool kInterleaved = Config::kInterleaved;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kInFlight = Config::kInFlight;  // tokens of one thread, twice: 16 registers each

  static constexpr int kRowThreads = kHeadDim / (2 * kChunkDims);  // threads across one token's row
  static constexpr int kRotaryThreads = kRotaryDim / (2 * kChunkDims);
  static constexpr int kUnits = kThreads / kRowThreads;
  using Tile = PoolTile<kHeadDim, kUnits, typename Config::HighBand, typename Config::LowBand>;

  static_assert(kHeadDim % (2 * kChunkDims) == 0 && kRotaryDim % (2 * kChunkDims) == 0 && kRotaryDim <= kHeadDim &&
                    kRotaryDim > 0,
                "a thread must have two chunks that both rotate or both do not");
  static_assert(kThreads % kWarpSize == 0 && kThreads % kRowThreads == 0, "threads must be whole warps and whole units");
  static_assert(kGranuleTokens % kInFlight == 0, "a granule must be whole passes");

  // One token of this thread's dims, and the cos and sin of its pairs.
  struct Token {
    uint4 first, second, cos, sin;
  };

  // Where this thread reads and writes the tokens of its granule.
  struct Cursor {
    Element const *src, *cos, *sin;  // src: of the first chunk; cos, sin: of its pairs
    Element* dst;
    int to_second;  // elements between the chunks
    bool rotates;

    CUTE_DEVICE void load(Token& token) const {
      token.first = load_once(src);
      token.second = load_once(src + to_second);
      if (rotates) {
        token.cos = table(cos);
        token.sin = table(sin);
      }
    }

    CUTE_DEVICE void store(Token const& token) const {
      *reinterpret_cast<uint4*>(dst) = token.first;
      *reinterpret_cast<uint4*>(dst + to_second) = token.second;
    }

    // Of a token's 8 pairs: 8 in a row, or where the layout is interleaved 4 of each chunk.
    CUTE_DEVICE static uint4 table(Element const* src) {
      if constexpr (!kInterleaved) {
        return __ldg(reinterpret_cast<uint4 const*>(src));
      } else {
        uint2 const low = __ldg(reinterpret_cast<uint2 const*>(src));
        uint2 const high = __ldg(reinterpret_cast<uint2 const*>(src + kRotaryDim / 4));
        return make_uint4(low.x, low.y, high.x, high.y);
      }
    }
  };

  struct Sums {
    DimSum<kChunkDims> first, second;

    CUTE_DEVICE void add(Token const& token) {
      first.template add<Element>(token.first);
      second.template add<Element>(token.second);
    }
    CUTE_DEVICE void load(float const* src, int first_dim, int second_dim) {
      first.load(src + first_dim);
      second.load(src + second_dim);
    }
  };

  // What take(token, index) makes of each rotated token of a granule, in order.
  struct NoSums {
    CUTE_DEVICE void take(Token const&, int) {}
  };
  struct BlockSums {
    Sums sums;
    CUTE_DEVICE void take(Token const& token, int) { sums.add(token); }
  };
  struct SubBlockSums {
    subpool::Tensor const& t;
    int64_t head_row;
    int first_token, num_tokens;  // of the granule; first_token: in the sequence
    int first_dim, second_dim;    // of the chunks
    Sums sums;

    CUTE_DEVICE void take(Token const& token, int index) {
      sums.add(token);
      int const place = (first_token + index) & ((1 << t.log2_sub) - 1), sub = (first_token + index) >> t.log2_sub;
      if (place != (1 << t.log2_sub) - 1 && index != num_tokens - 1) return;
      subpool::write_mean<kHeadDim>(t, sums.first, head_row, sub, place + 1, first_dim);
      subpool::write_mean<kHeadDim>(t, sums.second, head_row, sub, place + 1, second_dim);
      sums = Sums{};
    }
  };

  CUTE_DEVICE static void turn(Token& token) {
    if constexpr (kInterleaved) {
      rotate_interleaved<Element>(token.first, {token.cos.x, token.cos.y}, {token.sin.x, token.sin.y});
      rotate_interleaved<Element>(token.second, {token.cos.z, token.cos.w}, {token.sin.z, token.sin.w});
    } else {
      rotate_halves<Element>(token.first, token.second, token.cos, token.sin);
    }
  }

  // Loads of the tokens from `first` on, those that there are.
  CUTE_DEVICE static void load_window(RotateStrides const& strides, Cursor& cursor, Token (&window)[kInFlight], int first,
                                      int num_tokens) {
    CUTE_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i < num_tokens) cursor.load(window[i]);
      cursor.src += strides.token;
      cursor.cos += strides.table;
      cursor.sin += strides.table;
    }
  }

  // Rotates num_tokens tokens; the loads of a window are under way while the one before it is rotated and stored.
  template <class Taken>
  CUTE_DEVICE static void rotate_tokens(RotateStrides const& strides, Cursor cursor, int num_tokens, Taken& taken) {
    Token window[kInFlight], next[kInFlight];
    load_window(strides, cursor, window, 0, num_tokens);
#pragma unroll 2
    for (int first = 0; first < num_tokens; first += kInFlight) {
      load_window(strides, cursor, next, first + kInFlight, num_tokens);
      CUTE_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        if (first + i < num_tokens) {
          if (cursor.rotates) turn(window[i]);
          cursor.store(window[i]);
          taken.take(window[i], first + i);
        }
        cursor.dst += strides.out;
        window[i] = next[i];
      }
    }
  }

  template <Pooling kPooling>
  CUTE_DEVICE static void run(RotateParams const& p, typename Tile::SharedStorage* shared) {
    launch_dependents();
    bool const is_k = int(blockIdx.x) >= p.num_q_ctas;
    RotateTensor const& tensor = p.tensors[is_k];
    PoolTensor const& t = tensor.pool;
    int const cta = blockIdx.x - (is_k ? p.num_q_ctas : 0), batch = blockIdx.y;
    int const cta_outputs = Tile::num_outputs(t);
    int const unit = threadIdx.x / kRowThreads, column = threadIdx.x % kRowThreads;
    bool const rotates = kRotaryThreads == kRowThreads || column < kRotaryThreads;
    int const first_chunk = rotates ? column : 2 * kRotaryThreads + 2 * (column - kRotaryThreads);
    int const second_chunk = first_chunk + (rotates ? kRotaryThreads : 1);
    if (int const index = cta * cta_outputs + unit % cta_outputs; index < t.num_heads * t.num_blocks) {
      PoolOutput const output(t, batch, index);
      Granule const granule(t, output, unit / cta_outputs);
      int64_t const table = batch * p.table_stride_batch + granule.begin * p.table_stride_token +
                            column * (kInterleaved ? kChunkDims / 2 : kChunkDims);
      RotateStrides const strides{t.stride_token, tensor.out_stride_token, p.table_stride_token};
      Cursor const cursor{static_cast<Element const*>(t.x) + batch * t.stride_batch + output.head * t.stride_head +
                              granule.begin * t.stride_token + first_chunk * kChunkDims,
                          static_cast<Element const*>(p.cos) + table,
                          static_cast<Element const*>(p.sin) + table,
                          static_cast<Element*>(tensor.out) + batch * tensor.out_stride_batch +
                              output.head * tensor.out_stride_head + granule.begin * tensor.out_stride_token +
                              first_chunk * kChunkDims,
                          (second_chunk - first_chunk) * kChunkDims,
                          rotates};
      int const first_dim = first_chunk * kChunkDims, second_dim = second_chunk * kChunkDims;
      if constexpr (kPooling == Pooling::kBlocks) {
        BlockSums blocks;
        if (granule.goes_on) blocks.sums.load(t.tail_in + granule.tail * kHeadDim, first_dim, second_dim);
        rotate_tokens(strides, cursor, granule.num_tokens, blocks);
        blocks.sums.first.store(&shared->sums[unit][first_dim]);
        blocks.sums.second.store(&shared->sums[unit][second_dim]);
      } else if constexpr (kPooling == Pooling::kSubBlocks) {
        int const first_token = t.first_token + granule.begin;
        SubBlockSums subs{tensor.sub, output.head_row, first_token, granule.num_tokens, first_dim, second_dim, {}};
        bool const goes_on = granule.begin == 0 && (first_token & ((1 << tensor.sub.log2_sub) - 1)) != 0;
        if (goes_on && granule.num_tokens > 0) subs.sums.load(tensor.sub.tail_in + output.head_row * kHeadDim, first_dim, second_dim);
        rotate_tokens(strides, cursor, granule.num_tokens, subs);
      } else {
        NoSums none;
        rotate_tokens(strides, cursor, granule.num_tokens, none);
      }
    }
    if constexpr (kPooling == Pooling::kBlocks) {
      __syncthreads();
      Tile::template finish<kThreads / kWarpSize>(t, batch, cta, *shared);
    }
  }
};

// Where head_dim is no power of two, finding sub-blocks takes more registers than kMinCtas leave.
template <class Config, Pooling kPooling>
constexpr int kRotateMinCtas =
    Config::kMinCtas - int(kPooling == Pooling::kSubBlocks && (Config::kHeadDim & (Config::kHeadDim - 1)) != 0);

template <class Config, Pooling kPooling>
__global__ void __launch_bounds__(Config::kThreads, kRotateMinCtas<Config, kPooling>)
    rotate_kernel(__grid_constant__ RotateParams const p) {
  if constexpr (kPooling == Pooling::kBlocks) {
    __shared__ typename RotateKernel<Config>::Tile::SharedStorage shared;
    RotateKernel<Config>::template run<kPooling>(p, &shared);
  } else {
    RotateKernel<Config>::template run<kPooling>(p, nullptr);
  }
}

}  // namespace prism
