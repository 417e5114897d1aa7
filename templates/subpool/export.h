// Host side of subpool: checks the tensors, launches. Owns the exported function's meaning and errors.
#pragma once

#include "score/params.h"
#include "subpool/arguments.h"

namespace prism::subpool {

template <class Config>
void run(TensorView q, TensorView k, TensorView q_sub, TensorView k_sub, int64_t sub_block_q, int64_t sub_block_k, int64_t k_start,
         Optional<TensorView> tail_in, Optional<TensorView> tail_out) {
  using Kernel = subpool::Kernel<Config>;
  DLDevice const device = q.device();
  Params params{};
  params.tensors[0] = sub_blocks<Config>({"q", "q_sub", q, q_sub, sub_block_q, 0, 1, {}, {}}, device);
  params.tensors[1] =
      sub_blocks<Config>({"k", "k_sub", k, k_sub, sub_block_k, k_start, score::kTileColumns, tail_in, tail_out}, device);
  check_size(k, "k", 0, q.size(0));
  params.num_q_ctas = Kernel::num_ctas(params.tensors[0]);
  dim3 const grid(params.num_q_ctas + Kernel::num_ctas(params.tensors[1]), int(q.size(0)));
  if (grid.x == 0 || grid.y == 0) return;
  DeviceGuard const guard(device.device_id);
  subpool_kernel<Config><<<grid, Config::kThreads, 0, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "subpool launch");
}

}  // namespace prism::subpool

#define PRISM_EXPORT_SUBPOOL(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)                  \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(subpool, prism::subpool::run<Config>)
