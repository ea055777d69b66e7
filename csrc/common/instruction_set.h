// Which of the compiled instruction sets (simd.h) this process runs.
#pragma once

#include "simd.h"

#include <ATen/Version.h>

#include <string>

namespace vlkd {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// As torch itself chooses (AVX512 is F, BW, DQ and VL with it, AVX2 has FMA), so ATEN_CPU_CAPABILITY holds here too.
inline InstructionSet instruction_set() {
#ifdef VLKD_AVX512
  static const InstructionSet best = [] {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX2") return InstructionSet::kAvx2;
    if (capability.rfind("AVX512", 0) != 0) return InstructionSet::kBaseline;
#ifdef VLKD_AVX512_BF16
    if (__builtin_cpu_supports("avx512bf16")) return InstructionSet::kAvx512Bf16;
#endif
    return InstructionSet::kAvx512;
  }();
  return best;
#else
  return InstructionSet::kBaseline;
#endif
}

} // namespace vlkd
