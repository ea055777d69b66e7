// attention_mse_head, block after block, on a processor; called through ctypes by test_cuda_attention_mse.py.

#include "gpu.h"

#include "../../../csrc/attention_mse/head.cuh"

#include <cstdio>

// Returns 0, 1 if there is no plan for these shapes, or 2 with the reason in `error`.
extern "C" int run(const vlkd::HeadProblem* problem, bool bfloat16, int blocks, bool backwards, char* error, int size) {
  try {
    const bool found = vlkd::visit_plan(problem->keys, problem->q_s.width, problem->q_t.width, [&](auto plan) {
      using Plan = decltype(plan);
      const int shared = Plan::shared_bytes(problem->keys);
      for (int i = 0; i < blocks; ++i) {
        emulation::run_block(i, Plan::kThreads, shared, backwards, [&] {
          if (bfloat16) {
            vlkd::attention_mse_head<c10::BFloat16, Plan>(*problem);
          } else {
            vlkd::attention_mse_head<c10::Half, Plan>(*problem);
          }
        });
      }
    });
    return found ? 0 : 1;
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%s", exception.what());
    return 2;
  }
}
