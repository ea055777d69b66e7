// ring_enqueue_'s kernel, block after block, on a processor; called through ctypes by test_cuda_ring_queue.py.

#include "gpu.h"

#include "../../../csrc/ring_queue/kernel.cuh"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

// Two writes of float32 rows whose blocks take turns, as they may on two streams; the first's with a lead of some blocks.
extern "C" int run_together(const vlkd::RingWrite* one, const vlkd::RingWrite* other, int lead, char* error, int size) {
  std::vector<std::function<void(int)>> run_block_of;
  std::vector<int64_t> blocks_of;
  const auto keep = [&](auto kernel, int64_t blocks, int threads, int shared, auto... arguments) {
    blocks_of.push_back(blocks);
    run_block_of.push_back([=](int block) {
      emulation::run_block(block, threads, shared, false, [&] { kernel(arguments...); });
    });
  };
  try {
    for (vlkd::RingWrite problem : {*one, *other}) {
      vlkd::cut_blocks(problem);
      vlkd::ring_enqueue(problem, vlkd::Element::kFloat, vlkd::Element::kFloat, keep);
    }
    for (int turn = 0; turn < lead + std::max(blocks_of[0], blocks_of[1]); ++turn) {
      for (int which = 0; which < 2; ++which) {
        const int block = turn - which * lead;
        if (0 <= block && block < blocks_of[which]) run_block_of[which](block);
      }
    }
    return 0;
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%s", exception.what());
    return 1;
  }
}

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
