#include "launch.cuh"

namespace vlkd {
template void launch_token_nce<c10::Half>(const NceProblem&, cudaStream_t);
} // namespace vlkd
