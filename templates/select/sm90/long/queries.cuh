// Rows of q means on their way to products. A loader has a band's dims of an item's rows copied to shared memory as they are, four
// bytes a dim; those who multiply them make halves of them in place: 32 dims take as many bytes as a slab's row (long_params.h).
//
// So of all means those of keys alone are prepared before. (Copied to registers and from there to shared memory, a work waited for L2:
// 3 us.)
#pragma once

#include "select/sm90/fragments.cuh"
#include "select/sm90/long/slabs.cuh"
#include "select/sm90/long/traits.cuh"

#include <cute/arch/copy_sm80.hpp>
#include <cutlass/arch/barrier.h>

namespace prism {

// Four chunks of a slab, a byte each. kNoChunk where the band's dims do not fill it.
constexpr uint32_t kNoChunk = 0xff;
template <class Band>
CUTE_HOST_DEVICE constexpr uint32_t slab_chunks(int slab) {
  uint32_t chunks = ~0u, at = 0;
  CUTE_UNROLL
  for (uint32_t chunk = 0; chunk < 32; ++chunk) {
    if (!Band::contains(chunk)) continue;
    if (at / kSlabChunks == uint32_t(slab)) chunks ^= (chunk ^ kNoChunk) << (at % kSlabChunks * 8);
    ++at;
  }
  return chunks;
}

template <class Traits>
struct QueryRows {
  static constexpr uint32_t kRowPieces = kSlabRowBytes / kPieceBytes, kPieceDims = kPieceBytes / sizeof(float);
  static constexpr uint32_t kCopyRows = kWarpSize / kRowPieces, kCopies = kLongRows / kCopyRows;  // a warp's, of a slab
  static constexpr uint32_t kWarpRows = kLongRows / 4, kLaneRows = kWarpRows / 8;                 // of an item; a lane has pieces of two
  static_assert(kSlabDims * sizeof(float) == kSlabRowBytes && kCopyRows == 4, "in place; even rows and odd ones of eight");

  // Asks for an item's rows, and for their energies; what lies behind the head's last row becomes zeros. first_row: the item's. slabs: of
  // its band. A warp.
  CUTE_DEVICE static void load(SelectParams const& p, int q_row, int first_row, int band, unsigned char* slabs, RowEnergy* energies) {
    uint32_t const lane = threadIdx.x % kWarpSize, piece = lane % kRowPieces, row = lane / kRowPieces;
    int const rows = p.num_q_blocks - first_row;
    int64_t const head_row = int64_t(q_row) * p.num_q_blocks + first_row;
    CUTE_UNROLL
    for (uint32_t at = lane; at < kLongRows; at += kWarpSize) {
      float const* const from = p.q_energy + (head_row + at) * kComponents;
      cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<float>::copy(from[kAllDims], energies[at].all, int(at) < rows);
      cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<float>::copy(from[band], energies[at].band, int(at) < rows);
    }
    float const* const mean = p.q_mean + (head_row + row) * Traits::kHeadDim + piece % 2 * kPieceDims;
    uint32_t const even = row * kSlabRowBytes + (piece ^ row) * kPieceBytes, odd = even ^ kCopyRows * kPieceBytes;  // swizzled
    #pragma unroll 1
    for (int slab = 0; slab < Traits::band_slabs(band); ++slab) {
      uint32_t chunks = 0;
      CUTE_UNROLL
      for (int i = 0; i < Traits::kMostSlabs; ++i) {
        if (i == slab) chunks = band == 0 ? slab_chunks<typename Traits::High>(i) : slab_chunks<typename Traits::Low>(i);
      }
      uint32_t const chunk = chunks >> (piece / 2 * 8) & kNoChunk;
      float const* const from = mean + chunk * kChunkDims;
      unsigned char* const to = slabs + slab * kQuerySlabBytes;
      auto const copy = [&](uint32_t i, bool some) {
        cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint4>::copy(
            *reinterpret_cast<uint4 const*>(from + i * (kCopyRows * Traits::kHeadDim)),
            *reinterpret_cast<uint4*>(to + (i % 2 == 0 ? even : odd) + i * (kCopyRows * kSlabRowBytes)), some);
      };
      bool const some = chunk != kNoChunk;
      if (rows >= kLongRows) {  // no look at each
        CUTE_UNROLL
        for (uint32_t i = 0; i < kCopies; ++i) copy(i, some);
      } else {
        #pragma unroll 1
        for (uint32_t i = 0; i < kCopies; ++i) copy(i, some && int(i * kCopyRows + row) < rows);
      }
    }
  }

  // Makes halves of a warp's rows. slabs: of its first row. up: what scales this thread's, row lane / 4 and 8 more. A warp.
  CUTE_DEVICE static void split(unsigned char* slabs, int num_slabs, float const (&up)[kLaneRows]) {
    uint32_t const lane = threadIdx.x % kWarpSize, row = lane / kSlabChunks, chunk = lane % kSlabChunks, odd = row % 2;
    unsigned char* const own = slabs + row * kSlabRowBytes;
    auto const piece = [&](uint32_t place, int slab, uint32_t r) -> uint4& {
      return *reinterpret_cast<uint4*>(own + slab * kQuerySlabBytes + r * (8 * kSlabRowBytes) + (place ^ row) * kPieceBytes);
    };
    uint4 x[Traits::kMostSlabs][kLaneRows][2];
    CUTE_UNROLL
    for (int slab = 0; slab < Traits::kMostSlabs; ++slab) {
      if (slab >= num_slabs) break;
      CUTE_UNROLL
      for (uint32_t i = 0; i < kLaneRows * 2; ++i) x[slab][i / 2][i % 2] = piece(2 * chunk + i % 2, slab, i / 2);
    }
    __syncwarp();  // in place
    CUTE_UNROLL
    for (int slab = 0; slab < Traits::kMostSlabs; ++slab) {
      if (slab >= num_slabs) break;
      CUTE_UNROLL
      for (uint32_t r = 0; r < kLaneRows; ++r) {
        uint4 const first = as_halves<false>(x[slab][r][0], up[r]), second = as_halves<false>(x[slab][r][1], up[r]);
        uint4 const high = make_uint4(first.x, first.y, second.x, second.y), low = make_uint4(first.z, first.w, second.z, second.w);
        // Odd rows store the low halves first, so that the pieces of eight lanes lie in different banks.
        piece(chunk + odd * kSlabChunks, slab, r) = odd ? low : high;
        piece(chunk + (odd ^ 1) * kSlabChunks, slab, r) = odd ? high : low;
      }
    }
    asm volatile("" ::: "memory");
    cutlass::arch::fence_view_async_shared();  // the tensor cores will read them
  }
};

}  // namespace prism
