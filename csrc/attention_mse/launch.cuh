// What head_*.cu instantiate.
#pragma once

#include "head.cuh"
#include "launch.h"

#include <c10/cuda/CUDAException.h>

namespace vlkd {

template <typename T, typename Plan>
void launch_head(const HeadProblem& problem, int64_t blocks, cudaStream_t stream) {
  const int shared = Plan::shared_bytes(problem.keys);
  const auto kernel = attention_mse_head<T, Plan>;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  kernel<<<static_cast<unsigned>(blocks), Plan::kThreads, shared, stream>>>(problem);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// The plans of `visit_plan` (plan.h) for students of a padded width.
#define VLKD_LAUNCH_HEAD(T, ...) template void launch_head<T, HeadPlan<__VA_ARGS__>>(const HeadProblem&, int64_t, cudaStream_t)

#define VLKD_LAUNCH_HEADS(T, kWidth)        \
  VLKD_LAUNCH_HEAD(T, kWidth, 64, 2, 4);    \
  VLKD_LAUNCH_HEAD(T, kWidth, 128, 2, 4);   \
  VLKD_LAUNCH_HEAD(T, kWidth, 64, 4, 2);    \
  VLKD_LAUNCH_HEAD(T, kWidth, 128, 4, 2)

} // namespace vlkd
