// Rows of key means to rows of slabs (long_params.h): both bands' halves, and zeros where a band's dims do not fill its slabs.
#pragma once

#include "select/sm90/long/traits.cuh"
#include "select/sm90/scores.cuh"

namespace prism {

constexpr uint32_t kSlabChunks = kSlabDims / kChunkDims, kPieceBytes = 16;  // a piece: the high or the low halves of a chunk

// A warp's rows, kRows of a tile one behind the other. Lanes lie along a row, or a half of it, four dims each; or along two rows.
template <class Traits, int kRows>
class SlabRows {
  static constexpr uint32_t kRowVectors = Traits::kHeadDim / 4;
  static constexpr uint32_t kSpanLanes = kRowVectors <= kWarpSize ? kRowVectors : kRowVectors / 2, kSpans = kRowVectors / kSpanLanes;
  static constexpr uint32_t kLaneRows = kWarpSize / kSpanLanes, kUsedLanes = kLaneRows * kSpanLanes;
  static constexpr uint32_t kBatch = 4, kBatchRows = kBatch * kLaneRows;  // loads of a lane under way together
  static constexpr uint32_t kBatches = kRows / kBatchRows * kSpans;
  static_assert(kSpanLanes <= kWarpSize && kSpanLanes % 2 == 0 && kRows % kBatchRows == 0);

 public:
  // mean: of the first row. rows: how many of them and of those behind are the head's; the others become zeros.
  CUTE_DEVICE SlabRows(float const* mean, int rows) : mean_(reinterpret_cast<float4 const*>(mean)), rows_(rows) { load(0); }

  // up: what scales them. place_of(row): where a row lies in its tile. slabs: of the tile.
  template <class PlaceOf>
  CUTE_DEVICE void store(unsigned char* slabs, float up, PlaceOf const& place_of) {
    #pragma unroll 1
    for (uint32_t batch = 0;;) {
      store_batch(slabs, batch, up, place_of);
      if (++batch == kBatches) break;
      load(batch);
    }
    clear<typename Traits::High>(slabs, place_of);
    clear<typename Traits::Low>(slabs + Traits::first_slab(1) * kKeySlabBytes, place_of);
  }

 private:
  CUTE_DEVICE static uint32_t lane() { return threadIdx.x % kWarpSize; }
  CUTE_DEVICE static bool used() { return kUsedLanes == kWarpSize || lane() < kUsedLanes; }
  // Of a lane in a batch: row i, and which four dims.
  CUTE_DEVICE static uint32_t row_of(uint32_t batch, uint32_t i) {
    return batch / kSpans * kBatchRows + i * kLaneRows + lane() / kSpanLanes;
  }
  CUTE_DEVICE static uint32_t vector_of(uint32_t batch) { return batch % kSpans * kSpanLanes + lane() % kSpanLanes; }

  CUTE_DEVICE void load(uint32_t batch) {
    CUTE_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      uint32_t const row = row_of(batch, i);
      x_[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (used() && int(row) < rows_) x_[i] = mean_[row * kRowVectors + vector_of(batch)];
    }
  }

  template <class PlaceOf>
  CUTE_DEVICE void store_batch(unsigned char* slabs, uint32_t batch, float up, PlaceOf const& place_of) const {
    using High = typename Traits::High;
    using Low = typename Traits::Low;
    uint32_t const odd = lane() % 2, chunk = vector_of(batch) / 2;
    CUTE_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      uint32_t const row = row_of(batch, i);
      uint4 const own = split_four(x_[i], up);
      // The even lane of a chunk takes its high halves, the odd one the low ones.
      uint2 const give = odd ? make_uint2(own.x, own.y) : make_uint2(own.z, own.w);
      uint2 const got = make_uint2(__shfl_xor_sync(kFullWarp, give.x, 1), __shfl_xor_sync(kFullWarp, give.y, 1));
      uint4 const piece = odd ? make_uint4(got.x, got.y, own.z, own.w) : make_uint4(own.x, own.y, got.x, got.y);
      // Places before the branches, so that a store is predicated.
      uint32_t const place = place_of(row);
      uint32_t const high = offset<High>(place, chunk, odd);
      uint32_t const low = Traits::template kBandSlabs<High> * kKeySlabBytes + offset<Low>(place, chunk, odd);
      if (used() && (High::kBits >> chunk & 1)) *reinterpret_cast<uint4*>(slabs + high) = piece;
      if (used() && (Low::kBits >> chunk & 1)) *reinterpret_cast<uint4*>(slabs + low) = piece;
    }
  }

  // Of half a chunk, in bytes from a band's first slab: the chunks before it in the band say where.
  template <class Band>
  CUTE_DEVICE static uint32_t offset(uint32_t place, uint32_t chunk, uint32_t odd) {
    return piece_offset(place, __popc(Band::kBits & ((1u << chunk) - 1)), odd);
  }
  CUTE_DEVICE static uint32_t piece_offset(uint32_t place, uint32_t at, uint32_t odd) {
    uint32_t const piece = (at % kSlabChunks + odd * kSlabChunks) * kPieceBytes, swizzle = place % 8 * kPieceBytes;
    return (at / kSlabChunks * kKeySlabBytes + (piece ^ swizzle)) + place * kSlabRowBytes;
  }

  template <class Band, class PlaceOf>
  CUTE_DEVICE static void clear(unsigned char* slabs, PlaceOf const& place_of) {
    constexpr uint32_t kRest = (Traits::template kBandSlabs<Band> * kSlabChunks - Band::kSize) * 2;  // pieces of a row
    if constexpr (kRest > 0) {
      #pragma unroll 1
      for (uint32_t i = lane(); i < kRows * kRest; i += kWarpSize) {
        uint32_t const piece = i % kRest, at = piece_offset(place_of(i / kRest), Band::kSize + piece / 2, piece % 2);
        *reinterpret_cast<uint4*>(slabs + at) = make_uint4(0, 0, 0, 0);
      }
    }
  }

  float4 const* const mean_;
  int const rows_;
  float4 x_[kBatch];
};

}  // namespace prism
