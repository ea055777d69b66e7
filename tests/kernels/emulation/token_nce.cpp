// token_nce's kernels in their order, block after block, on a processor; called through ctypes by test_cuda_token_nce.py.

#include "gpu.h"

#include "../../../csrc/token_nce/kernels.cuh"

#include <cstdio>

extern "C" void cut_chunks(vlkd::NceProblem* problem) {
  vlkd::cut_chunks(*problem);
}

// Returns 0, or 1 with the reason in `error`.
extern "C" int run(const vlkd::NceProblem* problem, bool bfloat16, bool backwards, char* error, int size) {
  const auto launch = [&](auto kernel, int64_t blocks, int threads, int shared, auto... arguments) {
    for (int64_t i = 0; i < blocks; ++i) {
      emulation::run_block(static_cast<int>(i), threads, shared, backwards, [&] { kernel(arguments...); });
    }
  };
  try {
    if (bfloat16) {
      vlkd::token_nce<c10::BFloat16>(*problem, launch);
    } else {
      vlkd::token_nce<c10::Half>(*problem, launch);
    }
    return 0;
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%s", exception.what());
    return 1;
  }
}
