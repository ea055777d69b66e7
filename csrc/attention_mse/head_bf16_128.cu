#include "launch.cuh"

namespace vlkd {
VLKD_LAUNCH_HEAD(c10::BFloat16, 128, 128, 2, 4);
} // namespace vlkd
