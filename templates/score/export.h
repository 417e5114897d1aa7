// Host side of score: checks the tensors, fills the parameters, launches the kernels. Owns the exported functions' meaning and errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "score/params.h"
#include "score/sm90/choose.cuh"
#include "score/sm90/kernel.cuh"
#include "shared/ffi.h"
#include "shared/lists.h"
#include "shared/tensor_map.h"

namespace prism::score {

constexpr int kMostTokens = 1 << 29;  // of a sequence: sums of two stay inside int32

inline void check_shape(TensorView const& t, char const* name, std::initializer_list<int64_t> shape) {
  int dim = 0;
  for (int64_t size : shape) check_size(t, name, dim++, size);
  check_contiguous(t, name);
}

inline void check_range(int64_t value, char const* name, int64_t low, int64_t high) {
  if (value < low || value > high) {
    TVM_FFI_THROW(ValueError) << name << " is " << value << ", expected " << low << " to " << high;
  }
}

inline int log2_sub_block(int64_t size, char const* name) {
  for (int log2 = 2; log2 <= 4; ++log2) {
    if (size == 1 << log2) return log2;
  }
  TVM_FFI_THROW(ValueError) << name << " is " << size << " tokens, expected 4, 8 or 16";
  return 0;
}

inline int multiprocessor_count(int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// Heads, lengths and sub-blocks of one launch, and what follows from them.
template <class Config>
struct Shape {
  using Traits = prism::score::Traits<Config>;
  int64_t batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_k;
  int log2_sub_q, log2_sub_k;

  Shape(int64_t batch_size, int64_t q_heads, int64_t kv_heads, int64_t q_tokens, int64_t k_tokens, int64_t sub_q, int64_t sub_k)
      : batch(batch_size), num_q_heads(q_heads), num_kv_heads(kv_heads), seqlen_q(q_tokens), seqlen_k(k_tokens),
        log2_sub_q(log2_sub_block(sub_q, "sub_block_q")), log2_sub_k(log2_sub_block(sub_k, "sub_block_k")) {
    constexpr int64_t kMostHeads = 1 << 20;
    check_range(batch, "batch", 1, kMostHeads);
    check_range(num_q_heads, "num_q_heads", 1, kMostHeads);
    check_range(num_kv_heads, "num_kv_heads", 1, num_q_heads);
    check_range(batch * num_q_heads, "batch * num_q_heads", 1, kMostHeads);
    check_range(seqlen_k, "seqlen_k", 1, kMostTokens);
    check_range(seqlen_q, "seqlen_q", 1, seqlen_k);
    if (num_q_heads % num_kv_heads != 0) {
      TVM_FFI_THROW(ValueError) << "num_q_heads (" << num_q_heads << ") is no multiple of num_kv_heads (" << num_kv_heads << ")";
    }
  }

  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static int log2(int64_t power_of_two) {
    int result = 0;
    while (power_of_two >> result > 1) ++result;
    return result;
  }
  int64_t group_size() const { return num_q_heads / num_kv_heads; }
  int64_t block_size_q() const { return int64_t(Config::kRowsPerBlock) << log2_sub_q; }
  int64_t block_size_k() const { return int64_t(Config::kColumnsPerBlock) << log2_sub_k; }
  int64_t num_q_blocks() const { return ceil_div(seqlen_q, block_size_q()); }
  int64_t num_k_blocks() const { return ceil_div(seqlen_k, block_size_k()); }
  int64_t num_sub_rows() const { return ceil_div(seqlen_q, 1 << log2_sub_q); }
  int64_t num_k_tiles() const { return ceil_div(ceil_div(seqlen_k, 1 << log2_sub_k), kTileColumns); }
  int64_t num_parts() const { return ceil_div(num_sub_rows(), Traits::kPartRows); }

  // Heads that lie side by side in a tile read the same keys and see as many.
  int heads_per_tile() const {
    int heads = 1;
    while (heads * 2 <= Traits::kWarpGroups && Traits::kWarpGroups % (heads * 2) == 0 && group_size() % (heads * 2) == 0) heads *= 2;
    return heads;
  }
  int64_t num_head_tiles() const { return batch * num_q_heads / heads_per_tile(); }
  int64_t num_row_tiles() const { return ceil_div(num_sub_rows() * heads_per_tile(), Traits::kRows * Traits::kWarpGroups); }
  int64_t num_ctas(int num_sms) const { return std::min<int64_t>(num_sms, num_head_tiles() * num_row_tiles()); }
  int64_t sums_per_cta() const { return Traits::sums_per_cta(int(num_k_tiles())); }
  int64_t sums_floats(int num_sms) const { return num_ctas(num_sms) * sums_per_cta() / 2; }  // two in the place of a float
  MassLayout masses(float* memory) const {
    return {memory, Config::kRowsPerBlock / Traits::kPartRows, log2(block_size_q()), log2(block_size_k()), int(seqlen_k - seqlen_q),
            int(num_q_blocks())};
  }
  int64_t mass_floats() const { return batch * num_q_heads * masses(nullptr).head_floats; }
};

// fp32 that a launch needs as scratch on a device.
template <class Config>
int64_t scratch_floats(int64_t batch, int64_t num_q_heads, int64_t num_kv_heads, int64_t sub_block_q, int64_t sub_block_k,
                       int64_t seqlen_q, int64_t seqlen_k, int64_t device) {
  Shape<Config> const shape(batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_k, sub_block_q, sub_block_k);
  return shape.sums_floats(multiprocessor_count(int(device))) + shape.mass_floats();
}

template <class Traits>
cudaError_t make_means_map(CUtensorMap& map, void* means, int64_t heads, int64_t rows, int box_rows) {
  constexpr uint64_t kRowBytes = Traits::kHeadDim * sizeof(typename Traits::Element);
  MapShape<3> const shape = {{uint64_t(Traits::kHeadDim), uint64_t(rows), uint64_t(heads)},
                             {kRowBytes, uint64_t(rows) * kRowBytes},
                             {uint32_t(Traits::kSlabDims), uint32_t(box_rows), 1}};
  return make_tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, sizeof(typename Traits::Element), means, shape);
}

template <class Kernel, class P>
void start(Kernel kernel, P const& params, int64_t ctas, int threads, int64_t smem_bytes, DLDevice device, char const* what) {
  constexpr int64_t kMaxSmemBytes = 227 * 1024;  // dynamic shared memory of one CTA, sm90
  if (smem_bytes > kMaxSmemBytes) {
    TVM_FFI_THROW(ValueError) << what << " needs " << smem_bytes << " bytes of shared memory for rows of this length, a CTA has "
                              << kMaxSmemBytes << "; use larger blocks";
  }
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem_bytes)), what);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(ctas));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(smem_bytes);
  config.stream = current_stream(device);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, params), what);
}

// The query blocks before params.end_block whose rows are longer than kLongest words, or all: takes them off params.
template <int kWords, int kLongest>
void start_choose(ChooseParams& params, int num_sms, DLDevice device) {
  using Kernel = ChooseKernel<kWords>;
  int const end = params.end_block;
  params.first_block = end;
  while (params.first_block > 0 && mask_words(params.select.num_visible(params.first_block - 1)) > kLongest) --params.first_block;
  params.end_block = params.first_block;
  if (params.first_block == end) return;
  ChooseParams rows = params;
  rows.end_block = end;
  int64_t const needed = (rows.num_rows() + Kernel::kWarps - 1) / Kernel::kWarps;
  int64_t const ctas = std::min<int64_t>(needed, int64_t(num_sms) * Kernel::kCtasPerSm);
  start(choose_kernel<kWords>, rows, ctas, Kernel::kThreads, Kernel::smem_bytes(rows.select), device, "choose launch");
}

// share_group, reduce_mean, exclude_forced, force_*: 0 or 1. cut_kind: a CutKind.
template <class Config>
void run(TensorView q_sub, TensorView k_sub, TensorView thresholds, double softmax_scale, int64_t sub_block_q, int64_t sub_block_k,
         int64_t seqlen_q, int64_t seqlen_k, int64_t force_sink, int64_t force_recent, int64_t share_group, int64_t reduce_mean,
         int64_t exclude_forced, int64_t cut_kind, TensorView block_indices, TensorView block_counts,
         Optional<TensorView> wanted_counts, Optional<TensorView> probs, TensorView scratch) {
  using Traits = prism::score::Traits<Config>;
  using Element = typename Traits::Element;
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  DLDevice const device = q_sub.device();
  check_tensor<Element>(q_sub, "q_sub", 4, device);
  check_tensor<Element>(k_sub, "k_sub", 4, device);
  check_tensor<float>(scratch, "scratch", 1, device);
  check_range(force_sink, "force_sink", 0, 1);
  check_range(force_recent, "force_recent", 0, 1);
  check_range(share_group, "share_group", 0, 1);
  check_range(reduce_mean, "reduce_mean", 0, 1);
  check_range(exclude_forced, "exclude_forced", 0, 1);
  check_range(cut_kind, "cut_kind", int64_t(CutKind::kTopP), int64_t(CutKind::kDensity));
  if (!(softmax_scale > 0)) TVM_FFI_THROW(ValueError) << "softmax_scale must be positive, it is " << softmax_scale;

  Shape<Config> const shape(q_sub.size(0), q_sub.size(1), k_sub.size(1), seqlen_q, seqlen_k, sub_block_q, sub_block_k);
  int64_t const batch = shape.batch, heads_per_list = share_group != 0 ? shape.group_size() : 1;
  int64_t const num_lists = shape.num_q_heads / heads_per_list, num_q_blocks = shape.num_q_blocks(), num_k_blocks = shape.num_k_blocks();
  int64_t const key_rows = k_sub.size(2);
  check_shape(q_sub, "q_sub", {batch, shape.num_q_heads, shape.num_sub_rows(), Config::kHeadDim});
  check_range(key_rows, "k_sub.shape[2]", shape.num_k_tiles() * kTileColumns, kMax);
  check_shape(k_sub, "k_sub", {batch, shape.num_kv_heads, key_rows, Config::kHeadDim});
  check_strides(q_sub, "q_sub");
  check_strides(k_sub, "k_sub");
  check_lists({thresholds, block_indices, block_counts, wanted_counts, probs, 1}, batch, num_lists, num_q_blocks, num_k_blocks, device);
  int64_t const max_blocks = block_indices.size(3);
  DeviceGuard const guard(device.device_id);
  int const num_sms = multiprocessor_count(device.device_id);
  check_range(scratch.size(0), "scratch.shape[0]", shape.sums_floats(num_sms) + shape.mass_floats(), std::numeric_limits<int64_t>::max());
  check_strides(scratch, "scratch");

  Params params{};
  params.masses = shape.masses(data<float>(scratch));
  params.sums = reinterpret_cast<uint16_t*>(data<float>(scratch) + shape.mass_floats());
  params.softmax_scale_log2 = float(softmax_scale * M_LOG2E);
  params.seqlen_q = int(seqlen_q);
  params.prefix = int(seqlen_k - seqlen_q);
  params.log2_sub_q = shape.log2_sub_q;
  params.log2_sub_k = shape.log2_sub_k;
  params.num_sub_rows = int(shape.num_sub_rows());
  params.num_k_tiles = int(shape.num_k_tiles());
  params.group_size = int(shape.group_size());
  params.heads_per_tile = shape.heads_per_tile();
  params.num_head_tiles = int(shape.num_head_tiles());
  params.num_row_tiles = int(shape.num_row_tiles());
  params.mean = reduce_mean != 0;
  check_cuda(make_means_map<Traits>(params.q, q_sub.data_ptr(), batch * shape.num_q_heads, shape.num_sub_rows(), Traits::kRows),
             "score tensor map of q_sub");
  check_cuda(make_means_map<Traits>(params.k, k_sub.data_ptr(), batch * shape.num_kv_heads, key_rows, kTileColumns),
             "score tensor map of k_sub");

  ChooseParams choose{};
  SelectParams& select = choose.select;
  select.thresholds = data<float>(thresholds);
  select.block_indices = data<int32_t>(block_indices);
  select.block_counts = data<int32_t>(block_counts);
  select.wanted_counts = data_or_null<int32_t>(wanted_counts);
  select.probs = data_or_null<int32_t>(probs);
  select.batch = int(batch);
  select.num_q_heads = int(shape.num_q_heads);
  select.num_kv_heads = int(shape.num_kv_heads);
  select.heads_per_list = int(heads_per_list);
  select.num_q_blocks = int(num_q_blocks);
  select.num_k_blocks = int(num_k_blocks);
  select.max_blocks = int(max_blocks);
  select.block_size_q = int(shape.block_size_q());
  select.block_size_k = int(shape.block_size_k());
  select.seqlen_q = params.seqlen_q;
  select.prefix = params.prefix;
  select.cut_kind = CutKind(cut_kind);
  select.force_sink = force_sink != 0;
  select.force_recent = force_recent != 0;
  choose.masses = params.masses;
  choose.num_parts = int(shape.num_parts());
  choose.mean = params.mean;
  choose.exclude_forced = exclude_forced != 0;
  if (select.may_overflow()) {
    int least = 1;
    for (int q_block = 0; q_block < select.num_q_blocks; ++q_block) least = std::max(least, select.num_forced(q_block));
    check_range(max_blocks, "block_indices.shape[3] (max_blocks)", least, kMax);
  }

  start(score_kernel<Traits>, params, shape.num_ctas(num_sms), Traits::kThreads, Config::kSmemBytes, device, "score launch");
  choose.end_block = select.num_q_blocks;
  start_choose<0, 64>(choose, num_sms, device);
  start_choose<64, 32>(choose, num_sms, device);
  start_choose<32, 16>(choose, num_sms, device);
  start_choose<16, 0>(choose, num_sms, device);
}

}  // namespace prism::score

#define PRISM_EXPORT_SCORE(Config, kSpec)                       \
  PRISM_EXPORT_SPEC(kSpec)                                      \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(score, prism::score::run<Config>) \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(scratch_floats, prism::score::scratch_floats<Config>)
