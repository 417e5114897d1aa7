// Host side of one attend launch on sm90: tensor maps, tile order, grid. No allocation, no synchronisation.
#pragma once

#include <cmath>
#include <cstdio>

#include "attend/params.h"
#include "attend/sm90/kernel.cuh"

namespace prism::attend {

// Half of an H100's or H200's 50 to 60 MB: L2 is two partitions, and a line read from the far one is kept in both.
constexpr int64_t kL2Bytes = 32 << 20;

// TMA wants strides that are multiples of 16 bytes even for a dim of size 1, whose stride nobody reads.
inline int64_t used_stride(int64_t stride, int64_t size, int64_t head_dim) { return size > 1 ? stride : head_dim; }

// [seqlen, head_dim, heads, batch]
template <class Traits>
auto rows_view(TensorArg const& t, int seqlen, int heads, int batch) {
  using namespace cute;
  using Element = typename Traits::Element;
  return make_tensor(make_gmem_ptr(static_cast<Element*>(t.ptr)),
                     make_shape(seqlen, typename Traits::HeadDim{}, heads, batch),
                     make_stride(used_stride(t.row_stride, seqlen, Traits::kHeadDim), _1{},
                                 used_stride(t.head_stride, heads, Traits::kHeadDim),
                                 used_stride(t.batch_stride, batch, Traits::kHeadDim)));
}

inline Params make_params(Problem const& p, int tile_m, int64_t kv_bytes_per_head) {
  int const group_size = p.num_q_heads / p.num_kv_heads;
  int const num_q_tiles = (p.seqlen_q + tile_m - 1) / tile_m;
  int const num_kv_slots = p.batch * p.num_kv_heads;
  int const section_slots = int(std::min<int64_t>(std::max<int64_t>(1, kL2Bytes / kv_bytes_per_head), num_kv_slots));
  Params params{};
  params.block_indices = p.block_indices;
  params.block_counts = p.block_counts;
  params.lse = p.lse;
  params.tile_counter = p.tile_counter;
  params.softmax_scale_log2 = p.softmax_scale * float(M_LOG2E);
  params.seqlen_q = p.seqlen_q;
  params.seqlen_k = p.seqlen_k;
  params.prefix = p.seqlen_k - p.seqlen_q;
  params.num_batches = p.batch;
  params.num_q_heads = p.num_q_heads;
  params.num_q_blocks = p.num_q_blocks;
  params.max_blocks = p.max_blocks;
  params.num_q_tiles = num_q_tiles;
  params.num_tiles = num_q_tiles * p.batch * p.num_q_heads;
  params.num_kv_slots = num_kv_slots;
  params.section_slots = section_slots;
  params.section_tiles_divmod = cutlass::FastDivmod(section_slots * group_size * num_q_tiles);
  params.group_divmod = cutlass::FastDivmod(group_size);
  params.kv_head_divmod = cutlass::FastDivmod(p.num_kv_heads);
  return params;
}

template <class Config>
cudaError_t launch(Problem const& p, int num_sms, cudaStream_t stream) {
  using namespace cute;
  using Traits = Traits<Config>;
  using Element = typename Traits::Element;
  using QTile = Shape<typename Traits::Rows, typename Traits::HeadDim>;

  auto const q = rows_view<Traits>(p.q, p.seqlen_q, p.num_q_heads, p.batch);
  auto const k = rows_view<Traits>(p.k, p.seqlen_k, p.num_kv_heads, p.batch);
  auto const v_rows = rows_view<Traits>(p.v, p.seqlen_k, p.num_kv_heads, p.batch);
  auto const v = make_tensor(v_rows.data(), select<1, 0, 2, 3>(v_rows.layout()));
  auto const out = rows_view<Traits>(p.out, p.seqlen_q, p.num_q_heads, p.batch);

  auto const q_layout = take<0, 2>(typename Traits::LayoutQ{});
  auto const tma_q = make_tma_copy(SM90_TMA_LOAD{}, q, q_layout, QTile{}, _1{});
  auto const tma_k = make_tma_copy(SM90_TMA_LOAD{}, k, typename Traits::BoxK{});
  auto const tma_v = make_tma_copy(SM90_TMA_LOAD{}, v, typename Traits::BoxV{});
  auto const tma_o = make_tma_copy(SM90_TMA_STORE{}, out, q_layout, QTile{}, _1{});

  int64_t const kv_bytes_per_head = int64_t(p.seqlen_k) * Traits::kHeadDim * 2 * sizeof(Element);
  Params const params = make_params(p, Traits::kTileM, kv_bytes_per_head);

  auto* kernel = attend_kernel<Traits, decltype(tma_q), decltype(tma_k), decltype(tma_v), decltype(tma_o)>;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes);
  if (status != cudaSuccess) return status;
  int const grid = std::min(num_sms, params.num_tiles);
  kernel<<<grid, Traits::kThreads, Config::kSmemBytes, stream>>>(params, tma_q, tma_k, tma_v, tma_o);
  return cudaGetLastError();
}

}  // namespace prism::attend
