#include "launch.cuh"

namespace vlkd {
VLKD_LAUNCH_HEAD(c10::Half, 128, 128, 2, 4);
} // namespace vlkd
