// FlashPrefill V2's block-sparse forward behind one tvm-ffi function; tools/build_flashprefill.py compiles it.
//
// Owns how the parameters of one of its kernels are filled: bf16, head_dim 128, causal, packed GQA, K and V by TMA, one
// sequence. Headers, tiles and kernel are a checkout's; must not hold any of its code.
#include <cuda_runtime.h>

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include "flash_fwd_launch_template.h"  // the checkout's; flash.h and CUTLASS come with it

namespace {

using tvm::ffi::TensorView;
using Element = cutlass::bfloat16_t;
constexpr int kArch = 90, kHeadDim = 128, kClusterM = 1;
constexpr bool kCausal = true, kPackGqa = true, kBlockSparse = true;
constexpr bool kLocal = false, kSoftcap = false, kVarlen = false, kPagedKv = false, kAppendKv = false, kQv = false;
constexpr bool kSplit = false, kVColMajor = false, kSink = false;

// What a list stands for: rows of a packed tile and keys of a block. flashprefill.py sizes the lists by these.
constexpr auto kTile =
    tile_size_fwd_sm90(kHeadDim, kHeadDim, kCausal, kLocal, sizeof(Element), kVColMajor, kPagedKv, kSoftcap);
static_assert(std::get<0>(kTile) == 128 && std::get<1>(kTile) == 64, "the lists are made for tiles of 128 rows x 64 keys");

// q, out [1, seqlen_q, num_q_heads, 128], k, v [1, seqlen_k, num_kv_heads, 128] bf16, contiguous; lse fp32
// [1, num_q_heads, seqlen_q]. offsets int32 [num_kv_heads * num_tiles + 1] into indices int32, whose runs rise.
// tile_counter int32 [1], zeroed here as its own entry point does.
void attend(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse, TensorView offsets,
            TensorView indices, int64_t num_tiles, double softmax_scale, TensorView tile_counter) {
  DLDevice const device = q.device();
  auto const stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
  Flash_fwd_params p{};
  p.q_ptr = q.data_ptr();
  p.k_ptr = k.data_ptr();
  p.v_ptr = v.data_ptr();
  p.o_ptr = out.data_ptr();
  p.softmax_lse_ptr = lse.data_ptr();
  p.q_batch_stride = q.stride(0), p.q_row_stride = q.stride(1), p.q_head_stride = q.stride(2);
  p.k_batch_stride = k.stride(0), p.k_row_stride = k.stride(1), p.k_head_stride = k.stride(2);
  p.v_batch_stride = v.stride(0), p.v_row_stride = v.stride(1), p.v_head_stride = v.stride(2), p.v_dim_stride = 1;
  p.o_batch_stride = out.stride(0), p.o_row_stride = out.stride(1), p.o_head_stride = out.stride(2);
  p.b = p.b_k = 1;
  p.h = int(q.size(2)), p.h_k = int(k.size(2));
  p.d = p.dv = p.d_rounded = p.dv_rounded = kHeadDim;
  p.seqlen_q = p.total_q = int(q.size(1));
  p.seqlen_k = p.total_k = int(k.size(1));
  p.scale_softmax = float(softmax_scale);
  p.window_size_left = -1;
  p.is_bf16 = p.is_causal = p.pack_gqa = p.has_block_sparse = true;
  p.block_sparse_cu = static_cast<int*>(offsets.data_ptr());
  p.block_sparse_idx = static_cast<int*>(indices.data_ptr());
  p.total_q_tiles = int(num_tiles);
  p.num_splits = p.mean_n_sub = 1;
  p.tile_count_semaphore = static_cast<int*>(tile_counter.data_ptr());
  p.arch = kArch;
  CHECK_CUDA(cudaSetDevice(device.device_id));
  CHECK_CUDA(cudaDeviceGetAttribute(&p.num_sm, cudaDevAttrMultiProcessorCount, device.device_id));
  CHECK_CUDA(cudaMemsetAsync(p.tile_count_semaphore, 0, sizeof(int), stream));
  run_flash_fwd<kArch, kHeadDim, kHeadDim, kClusterM, Element, Element, kCausal, kLocal, kSoftcap, kVarlen, kPagedKv,
                kAppendKv, kQv, kPackGqa, kSplit, kVColMajor, kBlockSparse, kSink>(p, stream);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend)
