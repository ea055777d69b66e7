// ring_enqueue_'s kernel, block after block, on a processor; called through ctypes by test_cuda_ring_queue.py.

#include "gpu.h"

#include "../../../csrc/ring_queue/kernel.cuh"

#include <cstdio>

// Returns 0, or 1 with the reason in `error`; `backwards` takes the blocks, too, from the last to the first.
extern "C" int run(const vlkd::RingWrite* given, vlkd::Element to, vlkd::Element from, bool backwards, char* error, int size) {
  vlkd::RingWrite problem = *given;
  vlkd::cut_blocks(problem);
  try {
    vlkd::ring_enqueue(problem, to, from, [&](auto kernel, int64_t blocks, int threads, int shared, auto... arguments) {
      for (int64_t i = 0; i < blocks; ++i) {
        const int block = static_cast<int>(backwards ? blocks - 1 - i : i);
        emulation::run_block(block, threads, shared, backwards, [&] { kernel(arguments...); });
      }
    });
    return 0;
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%s", exception.what());
    return 1;
  }
}
