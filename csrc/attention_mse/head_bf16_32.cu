#include "launch.cuh"

namespace vlkd {
VLKD_LAUNCH_HEADS(c10::BFloat16, 32);
} // namespace vlkd
