// select: block means and energies to compact lists of key blocks, in one kernel (method.md steps 3 to 5).
//
// A CTA takes kTileRows query blocks of one q head. Per band: every warp computes scores of its own columns into the
// score tile (shared memory, or the CTA's slice of scratch where a row is too long), then takes whole rows: softmax,
// fixed point, cut-off, and a bit mask per row that collects the union. Rows are independent; nothing depends on the batch.
#pragma once

#include "select/params.h"
#include "select/sm90/row.cuh"
#include "select/sm90/scores.cuh"
#include "shared/arch_guard.h"

#include <cutlass/cutlass.h>
#include <cutlass/arch/arch.h>

namespace prism {

template <class Config>
struct SelectKernel {
  using High = typename Config::HighBand;
  using Low = typename Config::LowBand;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kTileRows = Config::kTileRows;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kMinCtas = 512 / kThreads > 0 ? 512 / kThreads : 1;  // 128 registers a thread
  static constexpr int kComponents = 3;      // of an energy: high, low, all
  static constexpr float kMinRms = 1e-6f;    // clamp of every divisor (method.md step 3): zeros give scores of 0

  static_assert(kTileRows % kMmaRows == 0 && kThreads % kWarpSize == 0 && kThreads <= 1024);

  template <class Band>
  using Scores = BandScores<Band, kTileRows, kThreads, kHeadDim>;

  struct SharedStorage {
    QueryFragments<High, kTileRows> q_high;
    QueryFragments<Low, kTileRows> q_low;
    float energy[kWarps][2][kComponents];
    float scale[2];
  };

  // Dynamic shared memory: SharedStorage, kTileRows bit masks, and the score tile unless it lives in scratch.
  CUTE_HOST_DEVICE static int mask_words(int num_k_blocks) { return (num_k_blocks + 31) / 32; }
  CUTE_HOST_DEVICE static int64_t mask_bytes(int num_k_blocks) {
    return int64_t(kTileRows) * mask_words(num_k_blocks) * sizeof(uint32_t);  // a multiple of 64: the tile stays aligned
  }
  CUTE_HOST_DEVICE static int64_t tile_floats(int num_k_blocks) {
    return int64_t(kTileRows) * score_row_stride(num_k_blocks);
  }
  CUTE_HOST_DEVICE static int64_t smem_bytes(int num_k_blocks, bool in_scratch) {
    return int64_t(sizeof(SharedStorage)) + mask_bytes(num_k_blocks) +
           (in_scratch ? 0 : tile_floats(num_k_blocks) * int64_t(sizeof(float)));
  }

  CUTE_HOST_DEVICE static int num_row_tiles(int num_q_blocks) { return (num_q_blocks + kTileRows - 1) / kTileRows; }

  struct Tile {
    int q_head, kv_head;
    int64_t q_row, k_row;  // (batch, head) as one index
    int first_block, num_rows;
  };

  // Longest rows first; the q heads of a KV group side by side, so that their k_mean meets in L2.
  CUTE_DEVICE static Tile tile_at(SelectParams const& p, int index) {
    int const heads = p.batch * p.num_q_heads;
    int const row_tile = num_row_tiles(p.num_q_blocks) - 1 - index / heads;
    int const q_row = index % heads, batch = q_row / p.num_q_heads, q_head = q_row % p.num_q_heads;
    int const kv_head = q_head / (p.num_q_heads / p.num_kv_heads);
    int const first = row_tile * kTileRows;
    return {q_head, kv_head, q_row, int64_t(batch) * p.num_kv_heads + kv_head,
            first,  min(kTileRows, p.num_q_blocks - first)};
  }

  // This warp's share of the sum over blocks of one head's energies, in an order fixed by kThreads.
  CUTE_DEVICE static void sum_energy(float const* energy, int num_blocks, float (&out)[kComponents]) {
    float sum[kComponents] = {};
    #pragma unroll 4
    for (int block = threadIdx.x; block < num_blocks; block += kThreads) {
      CUTE_UNROLL
      for (int c = 0; c < kComponents; ++c) sum[c] += __ldg(energy + block * kComponents + c);
    }
    CUTE_UNROLL
    for (int c = 0; c < kComponents; ++c) {
      float const total = warp_sum(sum[c]);
      if (threadIdx.x % kWarpSize == 0) out[c] = total;
    }
  }

  // Step 3: the factor from dot product to logit, 1 / (sqrt(band_dims) * tau). Sequence-wide energies.
  CUTE_DEVICE static float band_scale(SelectParams const& p, SharedStorage const& shared, int band, int band_dims) {
    float ratio = sqrtf(float(band_dims) / kHeadDim);
    CUTE_UNROLL
    for (int side = 0; side < 2; ++side) {  // q, k
      float part = 0.f, all = 0.f;
      CUTE_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        part += shared.energy[w][side][band];
        all += shared.energy[w][side][kComponents - 1];
      }
      float const blocks = float(side == 0 ? p.num_q_blocks : p.num_k_blocks);
      float const rms = sqrtf(all / (blocks * kHeadDim));
      ratio *= sqrtf(part / (blocks * band_dims)) / fmaxf(rms, kMinRms);
    }
    return 1.f / (sqrtf(float(band_dims)) * fmaxf(ratio, kMinRms));
  }

  // Steps 4 and 5 for one row and band, by one warp; adds the kept columns to the row's bit mask.
  template <class Row>
  CUTE_DEVICE static void select_row(Row row, int num_visible, float threshold, bool first_band, uint32_t* mask,
                                     int32_t* probs, int lane) {
    uint32_t const bound = softmax_fixed(row);
    Cutoff const cutoff = row_cutoff(row, bound, threshold);
    kept_words(row, cutoff, num_visible, lane,
               [&](int word, uint32_t kept) { mask[word] = first_band ? kept : mask[word] | kept; });
    if (probs != nullptr) {
      row.visit([&](int word, uint32_t value) {
        int const column = word * kWarpSize + lane;
        if (column < num_visible) probs[column] = int32_t(value);
      });
    }
  }

  template <bool kInScratch>
  CUTE_DEVICE static void select_rows(SelectParams const& p, Tile const& tile, int band, float* scores,
                                      uint32_t* masks) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    float const threshold = __ldg(p.thresholds + tile.q_head * 2 + band);
    for (int r = warp; r < tile.num_rows; r += kWarps) {
      int const q_block = tile.first_block + r, num_visible = p.num_visible(q_block);
      float* row = scores + r * score_row_stride(p.num_k_blocks);
      uint32_t* mask = masks + r * mask_words(p.num_k_blocks);
      int32_t* probs = nullptr;
      if (p.probs != nullptr) {
        probs = p.probs + ((tile.q_row * 2 + band) * p.num_q_blocks + q_block) * int64_t(p.num_k_blocks);
        for (int column = num_visible + lane; column < p.num_k_blocks; column += kWarpSize) probs[column] = 0;
      }
      if (!kInScratch && num_visible <= RegisterRow::kMaxColumns) {  // same order of operations, so the same bits
        select_row(RegisterRow(row, num_visible, lane), num_visible, threshold, band == 0, mask, probs, lane);
      } else {
        select_row(MemoryRow(row, num_visible, lane), num_visible, threshold, band == 0, mask, probs, lane);
      }
    }
  }

  // The row's bit mask, with sink and diagonal blocks forced, as a rising list. One warp a row.
  CUTE_DEVICE static void emit_rows(SelectParams const& p, Tile const& tile, uint32_t const* masks) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    for (int r = warp; r < tile.num_rows; r += kWarps) {
      int const q_block = tile.first_block + r, num_visible = p.num_visible(q_block);
      int const first_forced = p.force_recent ? p.first_diagonal(q_block) : num_visible;
      int64_t const out_row = tile.q_row * p.num_q_blocks + q_block;
      int32_t* out = p.block_indices + out_row * p.max_blocks;
      uint32_t const* mask = masks + r * mask_words(p.num_k_blocks);
      int count = 0;
      for (int word = 0; word * kWarpSize < num_visible; ++word) {
        int const column = word * kWarpSize + lane;
        bool const forced = (p.force_sink && column == 0) || (column >= first_forced && column < num_visible);
        uint32_t const kept = mask[word] | __ballot_sync(kFullWarp, forced);
        if ((kept >> lane) & 1u) out[count + __popc(kept & ((1u << lane) - 1u))] = column;
        count += __popc(kept);
      }
      if (lane == 0) p.block_counts[out_row] = count;
    }
  }

  template <bool kInScratch>
  CUTE_DEVICE static void run_tile(SelectParams const& p, Tile const& tile, SharedStorage& shared, uint32_t* masks,
                                   float* scores) {
    int const warp = cutlass::canonical_warp_idx_sync();
    float const* q_mean = p.q_mean + (tile.q_row * p.num_q_blocks + tile.first_block) * kHeadDim;
    float const* k_mean = p.k_mean + tile.k_row * p.num_k_blocks * kHeadDim;
    shared.q_high.template stage<kThreads>(q_mean, kHeadDim, tile.num_rows);
    shared.q_low.template stage<kThreads>(q_mean, kHeadDim, tile.num_rows);
    sum_energy(p.q_energy + tile.q_row * p.num_q_blocks * kComponents, p.num_q_blocks, shared.energy[warp][0]);
    sum_energy(p.k_energy + tile.k_row * p.num_k_blocks * kComponents, p.num_k_blocks, shared.energy[warp][1]);
    __syncthreads();
    if (threadIdx.x < 2) {
      shared.scale[threadIdx.x] = band_scale(p, shared, threadIdx.x, threadIdx.x == 0 ? High::kDims : Low::kDims);
    }
    __syncthreads();
    int const num_cols = p.num_visible(tile.first_block + tile.num_rows - 1);
    int const stride = score_row_stride(p.num_k_blocks);
    #pragma unroll 1
    for (int band = 0; band < 2; ++band) {  // one copy of the row code serves both
      if (band == 0) {
        Scores<High>::run(shared.q_high, k_mean, num_cols, shared.scale[band], scores, stride);
      } else {
        Scores<Low>::run(shared.q_low, k_mean, num_cols, shared.scale[band], scores, stride);
      }
      __syncthreads();
      select_rows<kInScratch>(p, tile, band, scores, masks);
      __syncthreads();  // the next scores overwrite these
    }
    emit_rows(p, tile, masks);  // a row's mask is read by the warp that wrote it
  }

  template <bool kInScratch>
  CUTE_DEVICE static void run(SelectParams const& p, unsigned char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    auto* masks = reinterpret_cast<uint32_t*>(smem + sizeof(SharedStorage));
    if constexpr (kInScratch) {  // as many CTAs as have a score tile there: each takes several tiles
      float* scores = p.scratch + blockIdx.x * tile_floats(p.num_k_blocks);
      int const num_tiles = p.batch * p.num_q_heads * num_row_tiles(p.num_q_blocks);
      #pragma unroll 1
      for (int index = blockIdx.x; index < num_tiles; index += gridDim.x) {
        run_tile<kInScratch>(p, tile_at(p, index), shared, masks, scores);
      }
    } else {
      float* scores = reinterpret_cast<float*>(smem + sizeof(SharedStorage) + mask_bytes(p.num_k_blocks));
      run_tile<kInScratch>(p, tile_at(p, blockIdx.x), shared, masks, scores);
    }
  }
};

template <class Config, bool kInScratch>
__global__ void __launch_bounds__(Config::kThreads, SelectKernel<Config>::kMinCtas) select_kernel(SelectParams const p) {
  extern __shared__ __align__(16) unsigned char smem[];
  SelectKernel<Config>::template run<kInScratch>(p, smem);
}

}  // namespace prism
