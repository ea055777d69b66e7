#include "launch.cuh"

namespace vlkd {
template void launch_token_nce<c10::BFloat16>(const NceProblem&, cudaStream_t);
} // namespace vlkd
