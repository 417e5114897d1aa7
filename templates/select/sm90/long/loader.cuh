// The loader warp of the kernel for long rows: what the CTA works on, slabs of the items' rows once, slabs of the keys they see for every
// pass. Works are taken as CTAs come to them, the longest first but for one (LongWork).
#pragma once

#include "select/sm90/long/traits.cuh"
#include "shared/dependents.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

#include <cute/arch/copy_sm90_tma.hpp>

namespace prism {

template <class Traits>
class LongLoader {
  using Work = LongWork<Traits>;

 public:
  CUTE_DEVICE LongLoader(LongParams const& params, typename Traits::SharedStorage& smem, int lane)
      : params_(params), smem_(smem), lane_(lane) {}

  // What is to be known of the items, lane by lane; the rest is lane 0's. The first work is made out while the kernel before goes on.
  // Little code: a launch's first instructions come from memory, and consumers wait for these.
  CUTE_DEVICE void run() {
    SelectParams const& p = params_.select;
    int const count = Work::count(params_);
    int index = int(blockIdx.x);
    uint32_t verdicts = 0;
    Work work = Work::at(params_, index);
    #pragma unroll 1
    for (; index < count; index = next(), work = Work::at(params_, index)) {
      int const item = min(lane_, work.num_items - 1), q_row = work.q_row(params_, item), row_tile = work.row_tile(params_, item);
      int const first_sees = work.first_sees(params_, row_tile), last_sees = work.last_sees(params_, row_tile);
      if (index == int(blockIdx.x)) {
        await_previous_kernels();
        launch_dependents();  // behind the wait: emit.cuh looks at counters that prepare has cleared by then, and waits for them alone
      }
      // A sample is the last tile that all rows see whole: what is near is often unlike what is far.
      int const num_tiles = (int(__reduce_max_sync(kFullWarp, uint32_t(last_sees))) + kLongColumns - 1) / kLongColumns;
      int const sample = max(int(__reduce_min_sync(kFullWarp, uint32_t(first_sees))) / kLongColumns - 1, 0);
      if (Traits::kTileFits && lane_ == 0) load_tile(work, sample);
      wait_at(smem_.q_empty, q_ring_.phase ^ 1);
      if (lane_ < work.num_items) load_queries(work, q_row, row_tile);
      auto& job = smem_.job;
      if (lane_ < Traits::kWarpGroups) {
        KeyFacts const& facts = params_.k_facts[work.k_row];
        float const threshold = __ldg(p.thresholds + q_row % p.num_q_heads * kBands + work.band);
        float const scale = work.scale(params_, q_row), error = kHighError * facts.longest[work.band];
        bool const some = lane_ < work.num_items;
        job.items[lane_] = {q_row,     row_tile * kLongRows, some ? first_sees : 0, some ? last_sees : 0,
                            threshold, scale * facts.down,   scale * error};
        if (lane_ > 0) arrive_at(smem_.q_full);  // each for what it has written; lane 0 below
      }
      if (lane_ == 0) {
        job.band = work.band;
        job.num_items = work.num_items;
        job.num_tiles = num_tiles;
        job.sample = sample;
        job.verdicts = verdicts;
        arrive_and_expect_at(smem_.q_full, work.num_items * query_bytes(work));  // its bytes may have come
        if (!Traits::kTileFits) load_tile(work, sample);
        verdicts = load_keys(work, num_tiles, sample, verdicts);
      }
      __syncwarp();
      q_ring_.advance();
    }
    wait_at(smem_.q_empty, q_ring_.phase ^ 1);
    if (lane_ == 0) smem_.job.num_items = 0;
    if (lane_ < Traits::kWarpGroups) arrive_at(smem_.q_full);
  }

 private:
  CUTE_DEVICE int next() const {
    uint32_t const claimed = lane_ == 0 ? atomicAdd(params_.claimed, 1u) : 0u;
    return int(gridDim.x + __shfl_sync(kFullWarp, claimed, 0));
  }

  CUTE_DEVICE static int query_bytes(Work const& work) { return Traits::band_slabs(work.band) * kQuerySlabBytes; }  // of an item

  // Of the item that is this lane's.
  CUTE_DEVICE void load_queries(Work const& work, int q_row, int row_tile) {
    int64_t const tile = int64_t(q_row) * params_.num_row_tiles + row_tile;
    copy(params_.q_slabs + (tile * Traits::kSlabs + Traits::first_slab(work.band)) * kQuerySlabBytes, smem_.q_full,
         reinterpret_cast<unsigned char*>(smem_.q) + lane_ * Traits::kMostSlabs * kQuerySlabBytes, query_bytes(work));
  }

  CUTE_DEVICE void load_tile(Work const& work, int tile) {
    constexpr int kTileBytes = Traits::kSlabs * kKeySlabBytes;
    int const slabs = Traits::band_slabs(work.band);
    unsigned char const* const from = params_.k_slabs + (int64_t(work.k_row) * params_.num_tiles + tile) * kTileBytes;
    #pragma unroll 1
    for (int slab = 0; slab < slabs; slab += Traits::kSlotSlabs) {
      int const bytes = min(slabs - slab, Traits::kSlotSlabs) * kKeySlabBytes;
      wait_at(smem_.k_empty[k_ring_.slot], k_ring_.phase ^ 1);
      arrive_and_expect_at(smem_.k_full[k_ring_.slot], bytes);
      copy(from + (Traits::first_slab(work.band) + slab) * kKeySlabBytes, smem_.k_full[k_ring_.slot],
           reinterpret_cast<unsigned char*>(smem_.k) + k_ring_.slot * Traits::kSlotBytes, bytes);
      k_ring_.advance();
    }
  }

  // For all passes of a work: a sample first, if there is one, then all tiles for each; but for the very first, which has been asked for.
  // verdicts: that have been waited for. Returns how many there are then.
  CUTE_DEVICE uint32_t load_keys(Work const& work, int num_tiles, int sample, uint32_t verdicts) {
    #pragma unroll 1
    for (int pass = 1, begin = sample > 0 ? 0 : 1;; ++pass, begin = 0) {
      #pragma unroll 1
      for (int tile = begin; tile < num_tiles; ++tile) load_tile(work, tile);
      if (pass < 2) continue;
      wait_at(smem_.verdict, verdicts % 2);
      ++verdicts;
      if (smem_.again[verdicts % 2] != verdicts) return verdicts;
    }
  }

  template <class Full>
  CUTE_DEVICE static void copy(void const* from, Full& full, void* to, int bytes) {
    cute::SM90_BULK_COPY_G2S::copy(from, reinterpret_cast<uint64_t*>(&full), to, bytes);
  }

  LongParams const& params_;
  typename Traits::SharedStorage& smem_;
  int const lane_;
  Ring<1> q_ring_;
  Ring<Traits::kSlots> k_ring_;
};

}  // namespace prism
