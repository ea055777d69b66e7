// The launches of token_nce's GPU kernels, which launch_*.cu compile, each for a type; they know nothing of torch but its numbers.
#pragma once

#include "problem.h"

#include <cuda_runtime_api.h>

namespace vlkd {

template <typename T>
void launch_token_nce(const NceProblem& problem, cudaStream_t stream);

} // namespace vlkd
