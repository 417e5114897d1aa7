// A wrong target compiles without an error into kernels that trap: CuTe guards its instructions by macro. So refuse here.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "sm_90 without the 'a' suffix has no wgmma or setmaxnreg: compile with -gencode=arch=compute_90a,code=sm_90a"
#endif
