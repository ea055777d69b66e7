// What launch_*.cu instantiate.
#pragma once

#include "kernels.cuh"
#include "launch.h"

#include <c10/cuda/CUDAException.h>

#include <limits>

namespace vlkd {

template <typename T>
void launch_token_nce(const NceProblem& problem, cudaStream_t stream) {
  token_nce<T>(problem, [stream](auto kernel, int64_t blocks, int threads, int shared, auto... arguments) {
    TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "token_nce: too large for the CUDA kernels");
    if (shared > 0) C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

} // namespace vlkd
