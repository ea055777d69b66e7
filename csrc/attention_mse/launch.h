// The launch of attention_mse's GPU kernel. Its instances are compiled side by side, each file a student's width and a type:
// head_*.cu, which know nothing of torch but its number types.
#pragma once

#include "plan.h"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vlkd {

// As many `blocks` as the student has key heads.
template <typename T, typename Plan>
void launch_head(const HeadProblem& problem, int64_t blocks, cudaStream_t stream);

} // namespace vlkd
