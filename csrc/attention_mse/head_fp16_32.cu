#include "launch.cuh"

namespace vlkd {
VLKD_LAUNCH_HEADS(c10::Half, 32);
} // namespace vlkd
