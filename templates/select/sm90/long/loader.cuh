// The loader thread of the kernel for long rows: what the CTA works on, slabs of the items' rows once, slabs of the keys they see for every
// pass. Works are taken as CTAs come to them, the longest first.
#pragma once

#include "select/sm90/long/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

#include <cute/arch/copy_sm90_tma.hpp>

namespace prism {

template <class Traits>
class LongLoader {
  using Work = LongWork<Traits>;

 public:
  CUTE_DEVICE LongLoader(LongParams const& params, typename Traits::SharedStorage& smem) : params_(params), smem_(smem) {}

  CUTE_DEVICE void run() {
    int const count = Work::count(params_);
    #pragma unroll 1
    for (int index = int(blockIdx.x); index < count; index = int(gridDim.x + atomicAdd(params_.claimed, 1u))) {
      Work const work = Work::at(params_, index);
      float threshold[Traits::kWarpGroups], scale[Traits::kWarpGroups];  // loaded while the work before goes on
      CUTE_UNROLL
      for (int item = 0; item < Traits::kWarpGroups; ++item) {
        int const q_row = work.q_row(params_, min(item, work.num_items - 1));
        threshold[item] = __ldg(params_.select.thresholds + q_row % params_.select.num_q_heads * kBands + work.band);
        scale[item] = work.scale(params_, q_row);
      }
      KeyFacts const& facts = params_.k_facts[work.k_row];
      float const down = facts.down, error = kHighError * facts.longest[work.band];
      wait_at(smem_.q_empty, q_ring_.phase ^ 1);
      tell(work, threshold, scale, down, error);
      load_queries(work);
      q_ring_.advance();
      if (int const sample = work.sample(params_); sample > 0) load_keys(work, sample, sample + 1);
      bool first = true, again = true;
      #pragma unroll 1
      while (again) {
        load_keys(work, 0, work.num_tiles(params_));
        if (!first) {
          wait_at(smem_.verdict, verdict_.phase);
          verdict_.advance();
          again = smem_.again != 0;
        }
        first = false;
      }
    }
    wait_at(smem_.q_empty, q_ring_.phase ^ 1);
    smem_.job.num_items = 0;
    arrive_at(smem_.q_full);
  }

 private:
  // threshold, scale: of the items' q heads. down, error: of the KV head, the error relative to a logit's scale.
  CUTE_DEVICE void tell(Work const& work, float const (&threshold)[Traits::kWarpGroups], float const (&scale)[Traits::kWarpGroups],
                        float down, float error) {
    auto& job = smem_.job;
    job.band = work.band;
    job.k_row = work.k_row;
    job.num_items = work.num_items;
    job.num_tiles = work.num_tiles(params_);
    job.sample = work.sample(params_);
    CUTE_UNROLL
    for (int group = 0; group < Traits::kWarpGroups; ++group) {
      int const item = min(group, work.num_items - 1);
      job.items[group] = {work.q_row(params_, item), work.row_tile(params_, item) * kLongRows, work.first_sees(params_, item),
                          work.last_sees(params_, item), threshold[group], scale[group] * down, scale[group] * error};
    }
  }

  CUTE_DEVICE void load_queries(Work const& work) {
    int const slabs = Traits::band_slabs(work.band), bytes = slabs * kQuerySlabBytes;
    arrive_and_expect_at(smem_.q_full, work.num_items * bytes);
    #pragma unroll 1
    for (int item = 0; item < work.num_items; ++item) {
      int64_t const tile = int64_t(work.q_row(params_, item)) * params_.num_row_tiles + work.row_tile(params_, item);
      copy(params_.q_slabs + (tile * Traits::kSlabs + Traits::first_slab(work.band)) * kQuerySlabBytes, smem_.q_full,
           reinterpret_cast<unsigned char*>(smem_.q) + item * Traits::kMostSlabs * kQuerySlabBytes, bytes);
    }
  }

  CUTE_DEVICE void load_keys(Work const& work, int begin, int end) {
    constexpr int kTileBytes = Traits::kSlabs * kKeySlabBytes;
    int const slabs = Traits::band_slabs(work.band);
    unsigned char const* const head =
        params_.k_slabs + int64_t(work.k_row) * params_.num_tiles * kTileBytes + Traits::first_slab(work.band) * kKeySlabBytes;
    #pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
      #pragma unroll 1
      for (int slab = 0; slab < slabs; ++slab) {
        wait_at(smem_.k_empty[k_ring_.slot], k_ring_.phase ^ 1);
        arrive_and_expect_at(smem_.k_full[k_ring_.slot], kKeySlabBytes);
        copy(head + int64_t(tile) * kTileBytes + slab * kKeySlabBytes, smem_.k_full[k_ring_.slot],
             reinterpret_cast<unsigned char*>(smem_.k) + k_ring_.slot * kKeySlabBytes, kKeySlabBytes);
        k_ring_.advance();
      }
    }
  }

  template <class Full>
  CUTE_DEVICE static void copy(void const* from, Full& full, void* to, int bytes) {
    cute::SM90_BULK_COPY_G2S::copy(from, reinterpret_cast<uint64_t*>(&full), to, bytes);
  }

  LongParams const& params_;
  typename Traits::SharedStorage& smem_;
  Ring<1> q_ring_, verdict_;
  Ring<Traits::kSlots> k_ring_;
};

}  // namespace prism
