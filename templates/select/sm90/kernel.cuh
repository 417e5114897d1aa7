// select: block means and energies to compact lists of key blocks, in one kernel (method.md steps 3 to 5).
//
// A cluster of CTAs takes kTileRows query blocks of one q head, so that k_mean is read once for that many rows. First the
// columns are dealt out: each CTA computes the scores of its columns, for all rows, into its slice of the score tile (shared
// memory, or scratch where rows are too long). Then the rows are: a warp gathers whole rows from the slices of all CTAs and
// does softmax, fixed point and cut-off in registers; a bit mask per row collects the union of the bands.
// Rows are independent; nothing depends on the batch.
#pragma once

#include "select/params.h"
#include "select/sm90/row.cuh"
#include "select/sm90/scores.cuh"
#include "shared/arch_guard.h"
#include "shared/cluster.cuh"

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
  static constexpr int kCluster = Config::kCluster;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kMinCtas = 512 / kThreads > 0 ? 512 / kThreads : 1;  // 128 registers a thread
  static constexpr int kCtaRows = kTileRows / kCluster;  // rows of a tile whose cut-off a CTA finds: every kCluster-th
  static constexpr int kUnitSlots = 2;     // of score columns that a warp computes at a time; 4 would spill registers
  static constexpr int kBands = 2;
  static constexpr int kComponents = 3;    // of an energy: high, low, all
  static constexpr float kMinRms = 1e-6f;  // clamp of every divisor (method.md step 3): zeros give scores of 0

  using Layout = ScoreLayout<kCluster>;
  using Row = RegisterRow<kCluster>;

  static_assert(kTileRows % kMmaRows == 0 && kTileRows % kCluster == 0 && kThreads % kWarpSize == 0);
  static_assert(kCluster == 1 || kCluster == 2 || kCluster == 4 || kCluster == 8, "the portable cluster sizes");
  static_assert(Row::kMaxWords % Layout::kGroupWords == 0);

  struct Tile {
    int q_head;
    int q_row, k_row;  // (batch, head) as one index
    int first_block, num_rows;
  };

  struct SharedStorage {
    QueryFragments<High, kTileRows> q_high;
    QueryFragments<Low, kTileRows> q_low;
    float warp_energy[kWarps][2][kComponents];      // of q and k, this CTA's share of the blocks
    float energy[2][kComponents];                   // all warps; read by the whole cluster
    alignas(16) float cluster_energy[kCluster][2 * kComponents];
    float score_scale[kBands];                      // from a product of scaled means to a logit in units of log2
    float half_scale[2];                            // of q and k
    Tile tile;                                      // here, because registers are short while scores are computed
  };

  // Dynamic shared memory: SharedStorage, the slice of the score tile unless it lives in scratch, kCtaRows bit masks.
  CUTE_HOST_DEVICE static int mask_words(int num_k_blocks) { return (num_k_blocks + 31) / 32; }
  CUTE_HOST_DEVICE static bool in_scratch(int num_k_blocks) { return mask_words(num_k_blocks) > Row::kMaxWords; }
  // A slice in shared memory has room for two groups of columns: both of one band, or one of each band where rows are short.
  static constexpr int kSmemGroups = Row::kMaxWords / Layout::kGroupWords;
  static constexpr int kBandFloats = kSmemGroups / kBands * Layout::kGroupFloats;  // from band to band within a row
  CUTE_HOST_DEVICE static bool both_bands(int num_k_blocks) {
    return mask_words(num_k_blocks) <= kSmemGroups / kBands * Layout::kGroupWords;
  }
  template <bool kInScratch>
  CUTE_HOST_DEVICE static auto row_stride(int num_k_blocks) {
    if constexpr (kInScratch) return Layout::row_stride(Layout::num_groups(mask_words(num_k_blocks)));
    else return std::integral_constant<int, Layout::row_stride(kSmemGroups)>{};
  }
  CUTE_HOST_DEVICE static int64_t slice_floats(int num_k_blocks) {
    return int64_t(kTileRows) * (in_scratch(num_k_blocks) ? row_stride<true>(num_k_blocks) : row_stride<false>(0));
  }
  CUTE_HOST_DEVICE static int64_t slice_bytes(int num_k_blocks) {
    return in_scratch(num_k_blocks) ? 0 : slice_floats(num_k_blocks) * int64_t(sizeof(float));
  }
  CUTE_HOST_DEVICE static int64_t smem_bytes(int num_k_blocks) {
    return int64_t(sizeof(SharedStorage)) + slice_bytes(num_k_blocks) +
           int64_t(kCtaRows) * mask_words(num_k_blocks) * int64_t(sizeof(uint32_t));
  }

  CUTE_HOST_DEVICE static int num_row_tiles(int num_q_blocks) { return (num_q_blocks + kTileRows - 1) / kTileRows; }

  // Longest rows first; the q heads of a KV group side by side, so that their k_mean meets in L2.
  CUTE_DEVICE static Tile tile_at(SelectParams const& p, int index) {
    int const heads = p.batch * p.num_q_heads;
    int const row_tile = num_row_tiles(p.num_q_blocks) - 1 - index / heads;
    int const q_row = index % heads, batch = q_row / p.num_q_heads, q_head = q_row % p.num_q_heads;
    int const kv_head = q_head / (p.num_q_heads / p.num_kv_heads);
    int const first = row_tile * kTileRows;
    return {q_head, q_row, batch * p.num_kv_heads + kv_head, first, min(kTileRows, p.num_q_blocks - first)};
  }

  // This warp's share of the sum over blocks of one head's energies, in an order fixed by the schedule.
  CUTE_DEVICE static void sum_energy(float const* energy, int num_blocks, int rank, float (&out)[kComponents]) {
    float sum[kComponents] = {};
    #pragma unroll 1
    for (int block = rank * kThreads + threadIdx.x; block < num_blocks; block += kThreads * kCluster) {
      CUTE_UNROLL
      for (int c = 0; c < kComponents; ++c) sum[c] += __ldg(energy + block * kComponents + c);
    }
    CUTE_UNROLL
    for (int c = 0; c < kComponents; ++c) {
      float const total = warp_sum(sum[c]);
      if (threadIdx.x % kWarpSize == 0) out[c] = total;
    }
  }

  // Sums both heads' energies over the cluster, every CTA the same bits, and makes the scales of them.
  CUTE_DEVICE static void calibrate(SelectParams const& p, SharedStorage& shared, int rank) {
    constexpr int kEntries = 2 * kComponents;
    int const warp = cutlass::canonical_warp_idx_sync();
    float const* q_energy = p.q_energy + int64_t(shared.tile.q_row) * p.num_q_blocks * kComponents;
    float const* k_energy = p.k_energy + int64_t(shared.tile.k_row) * p.num_k_blocks * kComponents;
    sum_energy(q_energy, p.num_q_blocks, rank, shared.warp_energy[warp][0]);
    sum_energy(k_energy, p.num_k_blocks, rank, shared.warp_energy[warp][1]);
    __syncthreads();
    if (threadIdx.x < kEntries) {
      float sum = 0.f;
      CUTE_UNROLL
      for (int w = 0; w < kWarps; ++w) sum += (&shared.warp_energy[w][0][0])[threadIdx.x];
      (&shared.energy[0][0])[threadIdx.x] = sum;
    }
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < kCluster * kEntries) {
      int const from = threadIdx.x / kEntries, entry = threadIdx.x % kEntries;
      shared.cluster_energy[from][entry] = cluster_peer(&shared.energy[0][0], from)[entry];
    }
    __syncthreads();
    if (threadIdx.x < kBands) {
      int const band = threadIdx.x;
      shared.score_scale[band] = band_scale(p, shared, band, band == 0 ? High::kDims : Low::kDims);
      shared.half_scale[band] = half_scale(total_energy(shared, band, kComponents - 1));  // here: side 0 q, side 1 k
    }
    __syncthreads();
  }

  CUTE_DEVICE static float total_energy(SharedStorage const& shared, int side, int component) {
    float sum = 0.f;
    CUTE_UNROLL
    for (int c = 0; c < kCluster; ++c) sum += shared.cluster_energy[c][side * kComponents + component];
    return sum;
  }

  // Step 3: the factor from the dot product of scaled means to a logit, 1 / (sqrt(band_dims) * tau), in units of log2.
  CUTE_DEVICE static float band_scale(SelectParams const& p, SharedStorage const& shared, int band, int band_dims) {
    constexpr float kLog2e = 1.4426950408889634f;
    float ratio = sqrtf(float(band_dims) / kHeadDim), unscale = kLog2e;
    CUTE_UNROLL
    for (int side = 0; side < 2; ++side) {  // q, k
      float const part = total_energy(shared, side, band), all = total_energy(shared, side, kComponents - 1);
      float const blocks = float(side == 0 ? p.num_q_blocks : p.num_k_blocks);
      float const rms = sqrtf(all / (blocks * kHeadDim));
      ratio *= sqrtf(part / (blocks * band_dims)) / fmaxf(rms, kMinRms);
      unscale /= half_scale(all);
    }
    return unscale / (sqrtf(float(band_dims)) * fmaxf(ratio, kMinRms));
  }

  // Step 4 for this CTA's columns of one band: units first, first + step, ... of 8 columns of each of kUnitSlots slots.
  template <class Band, class Fragments, class RowStride>
  CUTE_DEVICE static void score_columns(Fragments const& q, float const* k_mean, int num_cols, float k_scale,
                                        float const& scale, float* slice, RowStride stride, int rank, int first, int step) {
    using Unit = ScoreUnit<Band, kTileRows, kCluster, kHeadDim, kUnitSlots, RowStride>;
    constexpr int kColumnParts = kWarpSize / kMmaCols;
    int const num_words = (num_cols + 31) / 32;
    #pragma unroll 1
    for (int unit = first;; unit += step) {
      int const slot = unit / kColumnParts * kUnitSlots, first_word = slot * kCluster + rank;
      if (first_word >= num_words) break;
      float* scores = slice + slot / Layout::kGroupSlots * Layout::kGroupFloats + slot % Layout::kGroupSlots;
      Unit::run(q, k_mean, first_word, unit % kColumnParts, num_cols, k_scale, scale, scores, stride);
    }
  }

  // Steps 4 and 5 for one row and band, by one warp; adds the kept columns to the row's bit mask.
  template <class AnyRow>
  CUTE_DEVICE static void select_row(AnyRow& row, int num_visible, float threshold, bool first_band, uint32_t* mask,
                                     int32_t* probs, int lane) {
    ValueRange const range = softmax_fixed(row);
    Cutoff const cutoff = row_cutoff(row, range, threshold);
    kept_words(row, cutoff, num_visible, lane,
               [&](int word, uint32_t kept) { mask[word] = first_band ? kept : mask[word] | kept; });
    if (probs != nullptr) {
      row.visit([&](int word, uint32_t value, int) {
        int const column = word * kWarpSize + lane;
        if (column < num_visible) probs[column] = int32_t(value);
      });
    }
  }

  // Bands first_band .. end_band - 1 of this CTA's rows. Arrives at the cluster's barrier once the slices are read.
  template <bool kInScratch>
  CUTE_DEVICE static void select_rows(SelectParams const& p, Tile const& tile, int first_band, int end_band, float* slices,
                                      uint32_t* masks, int rank) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    auto const stride = row_stride<kInScratch>(p.num_k_blocks);
    bool arrived = false;
    #pragma unroll 1
    for (int index = warp; index < kCtaRows; index += kWarps) {
      int const row_index = index * kCluster + rank;
      if (row_index >= tile.num_rows) break;
      int const q_block = tile.first_block + row_index, num_visible = p.num_visible(q_block);
      uint32_t* mask = masks + index * mask_words(p.num_k_blocks);
      #pragma unroll 1
      for (int band = first_band; band < end_band; ++band) {
        float* mine = slices + row_index * stride + (band - first_band) * kBandFloats;
        float const threshold = __ldg(p.thresholds + tile.q_head * 2 + band);
        int32_t* probs = nullptr;
        if (p.probs != nullptr) {
          probs = p.probs + ((int64_t(tile.q_row) * 2 + band) * p.num_q_blocks + q_block) * int64_t(p.num_k_blocks);
          for (int column = num_visible + lane; column < p.num_k_blocks; column += kWarpSize) probs[column] = 0;
        }
        RowSource<kCluster, kInScratch> const source{mine, slice_floats(p.num_k_blocks)};
        if constexpr (kInScratch) {
          MemoryRow<kCluster> row(source, num_visible, lane);
          select_row(row, num_visible, threshold, band == 0, mask, probs, lane);
        } else {
          Row row(source, num_visible, lane);
          if (band + 1 == end_band && index + kWarps >= kCtaRows) {
            cluster_arrive();
            arrived = true;
          }
          select_row(row, num_visible, threshold, band == 0, mask, probs, lane);
        }
      }
    }
    if (!arrived) cluster_arrive();
  }

  // The row's bit mask, with sink and diagonal blocks forced, as a rising list. One warp a row.
  CUTE_DEVICE static void emit_row(SelectParams const& p, int64_t out_row, int q_block, uint32_t const* mask) {
    int const lane = threadIdx.x % kWarpSize, num_visible = p.num_visible(q_block);
    int const first_forced = p.force_recent ? p.first_diagonal(q_block) : num_visible;
    int const num_words = (num_visible + 31) / 32;
    int32_t* out = p.block_indices + out_row * p.max_blocks;
    int count = 0;
    for (int first = 0; first < num_words; first += kBatchWords) {
      int const word = first + lane;
      uint32_t kept = 0;
      if (word < num_words) {
        kept = mask[word] | bit_range(first_forced - word * kWarpSize, num_visible - word * kWarpSize) |
               (p.force_sink && word == 0 ? 1u : 0u);
      }
      int const total = warp_prefix_sum(__popc(kept), lane), place = count + total - __popc(kept);
      #pragma unroll 4
      for (int i = 0; i < min(kBatchWords, num_words - first); ++i) {
        uint32_t const bits = __shfl_sync(kFullWarp, kept, i);
        int const start = __shfl_sync(kFullWarp, place, i);
        if ((bits >> lane) & 1u) out[start + __popc(bits & ((1u << lane) - 1u))] = (first + i) * kWarpSize + lane;
      }
      count += __shfl_sync(kFullWarp, total, kWarpSize - 1);
    }
    if (lane == 0) p.block_counts[out_row] = count;
  }

  CUTE_DEVICE static void emit_rows(SelectParams const& p, Tile const& tile, uint32_t const* masks, int rank) {
    __syncwarp();  // lanes read words that others wrote; a row's mask is read by the warp that wrote it
    for (int index = cutlass::canonical_warp_idx_sync(); index < kCtaRows; index += kWarps) {
      int const row_index = index * kCluster + rank, q_block = tile.first_block + row_index;
      if (row_index >= tile.num_rows) break;
      emit_row(p, int64_t(tile.q_row) * p.num_q_blocks + q_block, q_block, masks + index * mask_words(p.num_k_blocks));
    }
  }

  // slices: of CTA 0 of the cluster in scratch, this CTA's in shared memory.
  template <bool kInScratch>
  CUTE_DEVICE static void run_tile(SelectParams const& p, int index, SharedStorage& shared, uint32_t* masks, float* slices,
                                   int rank) {
    int const warp = cutlass::canonical_warp_idx_sync();
    Tile const& tile = shared.tile;
    if (threadIdx.x == 0) shared.tile = tile_at(p, index);
    __syncthreads();
    calibrate(p, shared, rank);
    float const* q_mean = p.q_mean + (int64_t(tile.q_row) * p.num_q_blocks + tile.first_block) * kHeadDim;
    shared.q_high.template stage<kThreads>(q_mean, kHeadDim, tile.num_rows, shared.half_scale[0]);
    shared.q_low.template stage<kThreads>(q_mean, kHeadDim, tile.num_rows, shared.half_scale[0]);
    __syncthreads();
    auto const stride = row_stride<kInScratch>(p.num_k_blocks);
    bool const both = !kInScratch && both_bands(p.num_k_blocks);
    #pragma unroll 1
    for (int band = 0; band < kBands; band += both ? kBands : 1) {
      if (band > 0) cluster_wait();  // the slices of the band before are read
      int const num_cols = p.num_visible(tile.first_block + tile.num_rows - 1);
      float const* k_mean = p.k_mean + int64_t(tile.k_row) * p.num_k_blocks * kHeadDim;
      float* slice = kInScratch ? slices + rank * slice_floats(p.num_k_blocks) : slices;
      int const step = both ? kWarps / kBands : kWarps;
      if (band == 0 && warp < step) {
        score_columns<High>(shared.q_high, k_mean, num_cols, shared.half_scale[1], shared.score_scale[0], slice, stride,
                            rank, warp, step);
      } else {
        score_columns<Low>(shared.q_low, k_mean, num_cols, shared.half_scale[1], shared.score_scale[1],
                           both ? slice + kBandFloats : slice, stride, rank, both ? warp - step : warp, step);
      }
      cluster_arrive();
      cluster_wait();
      select_rows<kInScratch>(p, tile, band, both ? kBands : band + 1, slices, masks, rank);
    }
    emit_rows(p, tile, masks, rank);
    cluster_wait();  // nobody reads this CTA's shared memory any more: it may exit, or start the next tile
  }

  template <bool kInScratch>
  CUTE_DEVICE static void run(SelectParams const& p, unsigned char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    auto* slice = reinterpret_cast<float*>(smem + sizeof(SharedStorage));
    auto* masks = reinterpret_cast<uint32_t*>(smem + sizeof(SharedStorage) + slice_bytes(p.num_k_blocks));
    int const rank = cluster_rank(), cluster = blockIdx.x / kCluster;
    if constexpr (kInScratch) {  // as many clusters as have a score tile there: each takes several tiles
      float* slices = p.scratch + cluster * kCluster * slice_floats(p.num_k_blocks);
      int const num_tiles = p.batch * p.num_q_heads * num_row_tiles(p.num_q_blocks);
      #pragma unroll 1
      for (int index = cluster; index < num_tiles; index += gridDim.x / kCluster) {
        run_tile<kInScratch>(p, index, shared, masks, slices, rank);
        __syncthreads();  // the next tile's numbers overwrite this one's
      }
    } else {
      run_tile<kInScratch>(p, cluster, shared, masks, slice, rank);
    }
  }
};

template <class Config, bool kInScratch>
__global__ void __cluster_dims__(Config::kCluster, 1, 1)
    __launch_bounds__(Config::kThreads, SelectKernel<Config>::kMinCtas) select_kernel(SelectParams const p) {
  extern __shared__ __align__(16) unsigned char smem[];
  SelectKernel<Config>::template run<kInScratch>(p, smem);
}

}  // namespace prism
