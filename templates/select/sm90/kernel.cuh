// select: block means and energies to compact lists of key blocks, in one kernel (method.md steps 3 to 5).
//
// A cluster of CTAs takes kTileRows rows, so that k_mean is read once for that many: query blocks of one q head, or of all q heads
// of a group that shares its lists. First the columns are dealt out: each CTA computes the scores of its columns, for all rows, and
// sends them to the CTA that owns the row. Then a warp takes whole rows and does softmax, masses and cut-off in registers; a
// bit mask per list collects the union of the bands. Rows are independent; nothing depends on the batch.
#pragma once

#include "select/params.h"
#include "select/sm90/calibrate.cuh"
#include "select/sm90/cut.cuh"
#include "select/sm90/emit.cuh"
#include "select/sm90/layout.cuh"
#include "select/sm90/prepare.cuh"
#include "select/sm90/scores.cuh"
#include "shared/arch_guard.h"
#include "shared/cluster.cuh"
#include "shared/dependents.cuh"
#include "shared/mbarrier.cuh"

#include <cutlass/cutlass.h>
#include <cutlass/arch/arch.h>

namespace prism {

// Config: see layout.cuh.
template <class Config, SelectMode kMode>
struct SelectKernel : SelectLayout<Config, kMode> {
  using Layout = SelectLayout<Config, kMode>;
  using typename Layout::High, typename Layout::Low, typename Layout::Row, typename Layout::Tile,
      typename Layout::Energies, typename Layout::SharedStorage;
  using Layout::kHeadDim, Layout::kTileRows, Layout::kThreads, Layout::kCluster, Layout::kPrepared, Layout::kGroup, Layout::kPlain,
      Layout::kWarps, Layout::kCtaRows, Layout::kInRegisters, Layout::kBandFloats;
  using Layout::heads, Layout::cta_blocks, Layout::num_row_tiles, Layout::num_tiles, Layout::both_bands, Layout::tile_at,
      Layout::q_block_of_row, Layout::block_of_row;

  // Stages the tile's q means, and leaves this CTA's part of the sums of energies.
  CUTE_DEVICE static void stage(SelectParams const& p, SharedStorage& shared, Tile const& tile, int rank) {
    if constexpr (!kPrepared) shared.energies.sum(p, tile.q_row, tile.k_row, heads(p), rank);
    auto const scale = [&](int row) {
      return half_scale(__ldg(p.q_energy + block_of_row(p, tile, row) * kComponents + kAllDims));
    };
    float const* q_mean = kPrepared ? p.q_halves : p.q_mean;
    auto const mean = [&](int row) { return q_mean + block_of_row(p, tile, row) * kHeadDim; };
    auto const up = [&](int row) { return scale(row).up; };
    shared.q_high.template stage<kThreads, kPrepared>(mean, up);
    shared.q_low.template stage<kThreads, kPrepared>(mean, up);
    #pragma unroll 1
    for (int row = threadIdx.x; row < kTileRows; row += kThreads) {
      shared.row_down[row] = scale(row).down;
      shared.num_visible[row] = p.num_visible(q_block_of_row(p, tile, row));
    }
  }

  // What rows are scaled and cut by: one warp's work, which the others need after the scores only.
  CUTE_DEVICE static void make_rules(SelectParams const& p, SharedStorage& shared, int lane) {
    Tile const& tile = shared.tile;
    if (lane < kBands) shared.rules[lane] = CutRule(p.cut_kind, __ldg(p.thresholds + tile.list * kBands + lane));
    if constexpr (kPrepared) {
      #pragma unroll 1
      for (int i = lane; i < heads(p) * kBands; i += kWarpSize) {
        PreparedSums const sums(p, tile.q_row, tile.k_row);
        shared.scales[i / kBands][i % kBands] = logit_scale<High::kDims, Low::kDims, kHeadDim, false>(
            p, sums, i % kBands, i / kBands, heads(p), tile.q_row, tile.k_row, 0);
      }
    }
  }

  // Step 4 for this CTA's columns of one band. rows: the owners' rows of scores.
  template <class Band, bool kInScratch>
  CUTE_DEVICE static void score_columns(QueryFragments<Band, kTileRows> const& q, SelectParams const& p, int num_cols, float* rows,
                                        SharedStorage& shared, int rank, int first, int step) {
    using Unit = ScoreUnit<Band, kTileRows, kHeadDim, kPrepared>;
    auto const stride = Layout::template row_stride<kInScratch>(p.num_k_blocks);
    float const* k_mean = kPrepared ? p.k_halves + shared.tile.k_row * KeyHalves<kHeadDim>::head_floats(p.num_k_blocks)
                                    : p.k_mean + int64_t(shared.tile.k_row) * p.k_capacity * kHeadDim;
    float const* k_energy = p.k_energy + int64_t(shared.tile.k_row) * p.k_capacity * kComponents;
    int const num_units = num_groups(num_cols) * Unit::kPerGroup, lane = threadIdx.x % kWarpSize;
    typename Unit::Keys const keys(k_mean, k_energy, lane);
    #pragma unroll 1
    for (int unit = rank * step + first; unit < num_units; unit += step * kCluster) {
      // Where CTAs own fewer rows than a half tile has, its lanes send to several.
      int const own_row = lane / 4 % kCtaRows, own_rank = lane / 4 / kCtaRows;
      float* place = rows + unit * Unit::kCols + lane % 4 * kGroupWords + own_row * stride;
      Unit::run(q, keys, unit, num_cols, [&](int half_tile, float4 const& scores) {
        int const owner = half_tile * kHalfRows / kCtaRows + own_rank, row = half_tile * kHalfRows % kCtaRows;
        float* target = place + row * stride;
        if constexpr (kCluster == 1) *reinterpret_cast<float4*>(target) = scores;
        else store_async(cluster_address(target, owner), scores, cluster_address(&shared.full, owner));
      });
    }
  }

  // The scores of one list's row to masses. scores: of its first head; the others' follow, `stride` apart.
  template <class AnyRow>
  CUTE_DEVICE static MassStart probabilities(SelectParams const& p, SharedStorage const& shared, int band, int row_index,
                                            AnyRow& row, float* scores, int stride, int num_visible, int q_block, int lane) {
    int const q_row = shared.tile.q_row, k_row = shared.tile.k_row;
    auto const scale = [&](int head) {
      float const down = shared.row_down[row_index + head];
      if constexpr (kPrepared) {
        if (kPlain || !p.prefix_calibration) return shared.scales[head][band] * down;
        PreparedSums const sums(p, q_row, k_row);
        return down * logit_scale<High::kDims, Low::kDims, kHeadDim, true>(p, sums, band, head, heads(p), q_row, k_row, q_block);
      } else {
        return down * logit_scale<High::kDims, Low::kDims, kHeadDim, !kPlain>(p, shared.energies, band, head, heads(p), q_row, k_row,
                                                                            q_block);
      }
    };
    if constexpr (!kGroup) return fix_row(row, scale(0));
    Exponentials e{};
    float top = 0.f;
    #pragma unroll 1
    for (int head = 0; head < heads(p); ++head) {
      if (head > 0) row = AnyRow(scores + head * stride, num_visible, lane);
      e = exponentiate(row, scale(head));
      float const inverse = __frcp_rn(e.sum);
      top = fmaxf(top, e.top * inverse);
      row.update([&](int word, uint32_t bits, int) {
        float const x = __uint_as_float(bits) * inverse;
        uint32_t& strongest = row_value(scores, word, lane);
        float const best = head == 0 ? x : fmaxf(x, __uint_as_float(strongest));
        strongest = __float_as_uint(best);
        return strongest;
      });
    }
    float sums[kParts] = {};
    row.visit([&](int, uint32_t bits, int part) { sums[part] += __uint_as_float(bits); });
    float const unit = __frcp_rn(warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3]))) * float(kFixedOne);
    return fix(row, unit, top, e.centre + __log2f(unit * __frcp_rn(e.sum)), e.width);  // guided by the last head's shape
  }

  // Adds the columns that a cut-off keeps to the list's bit mask, and to a second one what fits where the list may overflow.
  template <class AnyRow>
  CUTE_DEVICE static void keep(SelectParams const& p, AnyRow const& row, MassStart const& start, CutRule const& rule, SizeSums& sums,
                               int band, int num_visible, int q_block, uint32_t* mask, uint32_t* fitting, int lane) {
    Cutoff cutoff = row_cutoff<!kPlain>(row, start, rule, num_visible, sums);
    #pragma unroll 1
    for (uint32_t* target = mask;; target = fitting) {
      int const count = kept_words(row, cutoff, num_visible, lane, [&](int word, uint32_t kept) {
        target[word] = band == 0 ? kept : target[word] | kept;
      });
      if (kPlain || !p.may_overflow() || target == fitting) break;
      int const room = (p.max_blocks - p.num_forced(q_block)) / kBands;
      if (count > room) cutoff = rank_cutoff(row, room, start.bound);
    }
  }

  // Bands first_band .. end_band - 1 of this CTA's lists.
  template <bool kInScratch>
  CUTE_DEVICE static void select_rows(SelectParams const& p, SharedStorage& shared, int first_band, int end_band, float* rows,
                                      uint32_t* masks, int rank) {
    using AnyRow = std::conditional_t<kInScratch, MemoryRow, Row>;
    Tile const& tile = shared.tile;
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize, blocks = cta_blocks(p);
    int const stride = Layout::template row_stride<kInScratch>(p.num_k_blocks), words = mask_words(p.num_k_blocks);
    bool owes_free = kCluster > 1 && end_band < kBands;  // a later phase sends scores here once more
    #pragma unroll 1
    for (int band = first_band; band < end_band; ++band) {
      CutRule const rule = shared.rules[band];
      #pragma unroll 1
      for (int index = warp; index < blocks; index += kWarps) {
        if (rank * blocks + index >= tile.num_blocks) break;
        int const q_block = tile.first_block + rank * blocks + index, row_index = index * heads(p);
        int const num_visible = shared.num_visible[rank * kCtaRows + row_index];
        float* scores = rows + row_index * stride + (band - first_band) * kBandFloats;
        AnyRow row(scores, num_visible, lane);
        bool const last = index + kWarps >= blocks;
        if (!kGroup && kInRegisters && last && owes_free) free_rows(shared, lane), owes_free = false;
        MassStart const start = probabilities(p, shared, band, rank * kCtaRows + row_index, row, scores, stride, num_visible, q_block,
                                             lane);
        if (kGroup && kInRegisters && last && owes_free) free_rows(shared, lane), owes_free = false;
        uint32_t* mask = masks + index * words;
        keep(p, row, start, rule, shared.sums[warp], band, num_visible, q_block, mask, mask + blocks * words, lane);
        if (!kPlain && p.probs != nullptr) {
          int64_t const out_row = (int64_t(tile.list_row) * kBands + band) * p.num_q_blocks + q_block;
          write_probs(row, p.probs + out_row * p.num_k_blocks, num_visible, p.num_k_blocks, lane);
        }
      }
    }
    if (owes_free) free_rows(shared, lane);
  }

  // Tells the cluster that this warp has read the scores of its rows.
  CUTE_DEVICE static void free_rows(SharedStorage& shared, int lane) {
    __syncwarp();
    if (lane < kCluster) shared.free.arrive(uint32_t(lane));
  }

  // The lists of this CTA.
  CUTE_DEVICE static void emit_rows(SelectParams const& p, SharedStorage const& shared, uint32_t const* masks, int rank) {
    Tile const& tile = shared.tile;
    __syncwarp();  // lanes read words that others wrote; a list's mask is read by the warp that wrote it
    int const words = mask_words(p.num_k_blocks), blocks = cta_blocks(p);
    for (int index = cutlass::canonical_warp_idx_sync(); index < blocks; index += kWarps) {
      if (rank * blocks + index >= tile.num_blocks) break;
      int const q_block = tile.first_block + rank * blocks + index;
      int const num_visible = shared.num_visible[rank * kCtaRows + index * heads(p)];
      uint32_t const* mask = masks + index * words;
      int wanted = 0;
      if (!kPlain && p.may_overflow()) {
        wanted = list_length(p, mask, q_block);
        if (wanted > p.max_blocks) mask += blocks * words;  // what fits
      }
      int64_t const out_row = int64_t(tile.list_row) * p.num_q_blocks + q_block;
      emit_list(p, out_row, q_block, num_visible, wanted, [&](int word) { return word < words ? mask[word] : 0u; });
    }
  }

  // rows: of scores, in scratch or in shared memory.
  template <bool kInScratch>
  CUTE_DEVICE static void run_tile(SelectParams const& p, Tile const& tile, SharedStorage& shared, uint32_t* masks, float* rows,
                                   int rank) {
    int const warp = cutlass::canonical_warp_idx_sync();
    if (threadIdx.x == 0) shared.tile = tile;
    stage(p, shared, tile, rank);
    __syncthreads();
    if constexpr (kCluster > 1) cute::cluster_wait();  // every CTA runs, and its barriers are ready
    if constexpr (!kPrepared) shared.energies.share(heads(p), rank, shared.full);
    if (warp == kWarps / 2 - 1) make_rules(p, shared, threadIdx.x % kWarpSize);  // of the warps that may have the smaller band
    bool const both = !kInScratch && both_bands(p.num_k_blocks);
    #pragma unroll 1
    for (int band = 0; band < kBands; band += both ? kBands : 1) {
      int const num_cols = shared.num_visible[kTileRows - 1];  // the last block's, or what repeats it
      if (kCluster > 1 && threadIdx.x == 0) {
        int const scores = num_groups(num_cols) * kGroupCols * kCtaRows * (both ? kBands : 1);
        int const floats = scores + (band == 0 && !kPrepared ? Energies::num_shared(heads(p)) : 0);
        arrive_and_expect_at(shared.full, uint32_t(floats * sizeof(float)));
      }
      if (band > 0) {  // until the scores of the band before are read
        if constexpr (kCluster > 1) wait_at(shared.free, 0);
        else __syncthreads();
      }
      int const step = both ? kWarps / kBands : kWarps;
      if (band == 0 && warp < step) {
        score_columns<High, kInScratch>(shared.q_high, p, num_cols, rows, shared, rank, warp, step);
      } else {
        score_columns<Low, kInScratch>(shared.q_low, p, num_cols, both ? rows + kBandFloats : rows, shared, rank,
                                       both ? warp - step : warp, step);
      }
      if constexpr (kCluster > 1) {
        arrive_at(shared.full);  // this lane has read q's fragments, in whose place others will add up sizes
        wait_at(shared.full, uint32_t(band));
      } else {
        __syncthreads();
      }
      select_rows<kInScratch>(p, shared, band, both ? kBands : band + 1, rows, masks, rank);
    }
    emit_rows(p, shared, masks, rank);
  }

  template <bool kInScratch>
  CUTE_DEVICE static void run(SelectParams const& p, unsigned char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    auto* masks = reinterpret_cast<uint32_t*>(smem + Layout::template masks_offset<kInScratch>());
    auto* rows = reinterpret_cast<float*>(smem + sizeof(SharedStorage));
    if constexpr (kCluster > 1) {
      if (threadIdx.x == 0) {
        shared.full.init(1 + kThreads);  // thread 0 once more, with the bytes
        shared.free.init(kCluster * kWarps);
        cutlass::arch::fence_barrier_init();
      }
      __syncthreads();
      cute::cluster_arrive_relaxed();
    }
    launch_dependents();
    await_previous_kernels();  // means and energies are theirs, and so is whatever still reads the lists
    if constexpr (kInScratch) {  // as many CTAs as have rows there: each takes several tiles
      static_assert(kCluster == 1, "scratch is ordered by the CTA's own barrier");
      rows = p.scratch + blockIdx.x * Layout::template tile_floats<true>(p.num_k_blocks);
      int const tiles = int(num_tiles(p));
      #pragma unroll 1
      for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        int const lists = p.num_lists(), rest = index / lists;
        Tile const tile = tile_at(p, index % lists, rest % num_row_tiles(p), rest / num_row_tiles(p));
        run_tile<kInScratch>(p, tile, shared, masks, rows, 0);
        __syncthreads();  // the next tile's numbers overwrite this one's
      }
    } else {
      Tile const tile = tile_at(p, blockIdx.x / kCluster, blockIdx.y, blockIdx.z);
      run_tile<kInScratch>(p, tile, shared, masks, rows, kCluster > 1 ? cluster_rank() : 0);
    }
  }
};

template <class Config, SelectMode kMode, bool kInScratch>
__global__ void __cluster_dims__(Config::kCluster, 1, 1)
    __launch_bounds__(Config::kThreads, Config::kCtasPerSm) select_kernel(SelectParams const p) {
  extern __shared__ __align__(16) unsigned char smem[];
  SelectKernel<Config, kMode>::template run<kInScratch>(p, smem);
}

}  // namespace prism
