#include "launch.cuh"

namespace vlkd {
VLKD_LAUNCH_HEADS(c10::BFloat16, 64);
} // namespace vlkd
