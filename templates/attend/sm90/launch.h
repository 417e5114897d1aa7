// Host side of one attend launch on sm90: tensor maps, tile order, grid. No allocation, no synchronisation.
#pragma once

#include <algorithm>
#include <cmath>

#include "attend/params.h"
#include "attend/sm90/kernel.cuh"
#include "shared/per_device.h"
#include "shared/tensor_map.h"

namespace prism::attend {

// Half of an H100's or H200's 50 to 60 MB: L2 is two partitions, and a line read from the far one is kept in both.
constexpr int64_t kL2Bytes = 32 << 20;

template <class Element>
constexpr CUtensorMapDataType kMapType =
    std::is_same_v<Element, cutlass::half_t> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

// The encoder wants strides that are multiples of 16 bytes even for a dim of size 1, whose stride nobody reads.
template <class Traits>
uint64_t stride_bytes(int64_t stride, int64_t size) {
  return uint64_t(size > 1 ? stride : Traits::kHeadDim) * sizeof(typename Traits::Element);
}

// Q or O: one box is a slab of the dims of one warp group's rows.
template <class Traits>
cudaError_t make_rows_map(CUtensorMap& map, TensorArg const& t, Problem const& p) {
  using Element = typename Traits::Element;
  constexpr int kHeads = Traits::kHeadsPerList;
  MapShape<5> const shape = {
      {uint64_t(Traits::kHeadDim), uint64_t(kHeads), uint64_t(p.seqlen_q), uint64_t(p.num_lists), uint64_t(p.batch)},
      {stride_bytes<Traits>(t.head_stride, kHeads), stride_bytes<Traits>(t.row_stride, p.seqlen_q),
       stride_bytes<Traits>(t.head_stride * kHeads, p.num_lists), stride_bytes<Traits>(t.batch_stride, p.batch)},
      {Traits::kSlabDims, kHeads, Traits::kPositionsPerWarpGroup, 1, 1}};
  return make_tensor_map(map, kMapType<Element>, sizeof(Element), t.ptr, shape);
}

// K or V: one box is a slab of the dims of one list entry.
template <class Traits>
cudaError_t make_keys_map(CUtensorMap& map, TensorArg const& t, Problem const& p) {
  using Element = typename Traits::Element;
  MapShape<4> const shape = {
      {uint64_t(Traits::kHeadDim), uint64_t(p.seqlen_k), uint64_t(p.num_kv_heads), uint64_t(p.batch)},
      {stride_bytes<Traits>(t.row_stride, p.seqlen_k), stride_bytes<Traits>(t.head_stride, p.num_kv_heads),
       stride_bytes<Traits>(t.batch_stride, p.batch)},
      {Traits::kSlabDims, Traits::kEntryTokens, 1, 1}};
  return make_tensor_map(map, kMapType<Element>, sizeof(Element), t.ptr, shape);
}

// num_teams: that run at the same time.
template <class Traits>
cudaError_t make_params(Params& params, Problem const& p, int num_teams) {
  int64_t const kv_bytes_per_head = int64_t(p.seqlen_k) * Traits::kHeadDim * 2 * sizeof(typename Traits::Element);
  int const lists_per_kv_head = p.num_lists / p.num_kv_heads;
  int const num_q_tiles = (p.seqlen_q + Traits::kTilePositions - 1) / Traits::kTilePositions;
  int const num_kv_slots = p.batch * p.num_kv_heads;
  int const section_slots = int(std::min<int64_t>(std::max<int64_t>(1, kL2Bytes / kv_bytes_per_head), num_kv_slots));
  params.keys = p.k;
  params.block_indices = p.block_indices;
  params.block_counts = p.block_counts;
  params.lse = p.lse;
  params.tile_counter = p.tile_counter;
  params.softmax_scale_log2 = p.softmax_scale * float(M_LOG2E);
  params.seqlen_q = p.seqlen_q;
  params.prefix = p.seqlen_k - p.seqlen_q;
  params.num_lists = p.num_lists;
  params.num_q_blocks = p.num_q_blocks;
  params.max_blocks = p.max_blocks;
  params.num_q_tiles = num_q_tiles;
  params.num_tiles = num_q_tiles * p.batch * p.num_lists;
  params.num_kv_slots = num_kv_slots;
  params.section_slots = section_slots;
  params.sweep_tiles = std::min(num_teams, Traits::kMostSweepTiles);
  params.sort_sweeps = kv_bytes_per_head > kL2Bytes;
  params.section_tiles_divmod = cutlass::FastDivmod(section_slots * lists_per_kv_head * num_q_tiles);
  params.lists_divmod = cutlass::FastDivmod(lists_per_kv_head);
  params.kv_head_divmod = cutlass::FastDivmod(p.num_kv_heads);
  cudaError_t status = make_rows_map<Traits>(params.q, p.q, p);
  if (status == cudaSuccess) status = make_rows_map<Traits>(params.out, p.out, p);
  if (status == cudaSuccess) status = make_keys_map<Traits>(params.k, p.k, p);
  if (status == cudaSuccess) status = make_keys_map<Traits>(params.v, p.v, p);
  return status;
}

// Raises the kernel's shared-memory limit.
template <class Traits>
cudaError_t allow_smem(int device) {
  static PerDevice allowed;
  int bytes;
  return allowed.get(bytes, device, [](int& answer) {
    answer = Traits::Config::kSmemBytes;
    return cudaFuncSetAttribute(attend_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, answer);
  });
}

inline cudaError_t multiprocessor_count(int& result, int device) {
  static PerDevice counts;
  return counts.get(result, device, [&](int& answer) {
    return cudaDeviceGetAttribute(&answer, cudaDevAttrMultiProcessorCount, device);
  });
}

// Clusters that the device runs at once: a part of the chip with an odd number of SMs leaves one idle, and a cluster that had to
// wait for a place would start on its long first tile when the others end.
template <class Traits>
cudaError_t num_clusters(int& result, cudaLaunchConfig_t const& config, int device) {
  if constexpr (Traits::kCluster == 1) {
    return multiprocessor_count(result, device);
  } else {
    static PerDevice counts;
    return counts.get(result, device, [&](int& answer) {
      cudaError_t const status = cudaOccupancyMaxActiveClusters(&answer, attend_kernel<Traits>, &config);
      return status == cudaSuccess && answer == 0 ? cudaErrorLaunchOutOfResources : status;
    });
  }
}

template <class Config>
cudaError_t launch(Problem const& p, int device, cudaStream_t stream) {
  using Traits = Traits<Config>;
  cudaError_t status = allow_smem<Traits>(device);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = Traits::kCluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(Traits::kCluster);
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = Config::kSmemBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = Traits::kCluster == 1 ? 1 : 2;
  int clusters = 0;
  status = num_clusters<Traits>(clusters, config, device);
  Params params{};
  if (status == cudaSuccess) status = make_params<Traits>(params, p, clusters * Traits::kTeams);
  if (status != cudaSuccess) return status;
  int const needed = (params.num_tiles + Traits::kTeams - 1) / Traits::kTeams;
  config.gridDim = dim3(unsigned(std::min(clusters, needed) * Traits::kCluster));
  return cudaLaunchKernelEx(&config, attend_kernel<Traits>, params);
}

}  // namespace prism::attend
