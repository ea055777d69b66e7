// Which of the compiled instruction sets (simd.h) this process runs.
#pragma once

#include "simd.h"

#include <ATen/Version.h>

#include <string>

#ifdef VLKD_AMX
#include <ATen/cpu/Utils.h>
#include <cpuid.h>
#include <cstdlib>
#endif

namespace vlkd {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

#ifdef VLKD_AMX
// Whether this process may use the matrix unit, which the kernel must be asked for. ONEDNN_MAX_CPU_ISA, by which the processor's
// other users are kept from it, holds here too.
inline bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 22 & 1) == 0) return false; // products of bfloat16
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string isa = limit == nullptr ? "ALL" : limit;
  const bool allowed = isa == "ALL" || isa == "DEFAULT" || isa.find("AMX") != std::string::npos;
  return allowed && at::cpu::init_amx();
}
#endif

// As torch itself chooses (AVX512 is F, BW, DQ and VL with it, AVX2 has FMA), so ATEN_CPU_CAPABILITY holds here too.
inline InstructionSet instruction_set() {
#ifdef VLKD_AVX512
  static const InstructionSet best = [] {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX2") return InstructionSet::kAvx2;
    if (capability.rfind("AVX512", 0) != 0) return InstructionSet::kBaseline;
#ifdef VLKD_AVX512_BF16
    if (__builtin_cpu_supports("avx512bf16")) {
#ifdef VLKD_AMX
      if (may_use_amx()) return InstructionSet::kAmx;
#endif
      return InstructionSet::kAvx512Bf16;
    }
#endif
    return InstructionSet::kAvx512;
  }();
  return best;
#else
  return InstructionSet::kBaseline;
#endif
}

// As `vlkd doctor` says it.
inline const char* instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::kAmx: return "AVX-512, bfloat16 by AMX tiles";
    case InstructionSet::kAvx512Bf16: return "AVX-512, bfloat16 by AVX512_BF16";
    case InstructionSet::kAvx512: return "AVX-512";
    case InstructionSet::kAvx2: return "AVX2";
    default: return "baseline";
  }
}

} // namespace vlkd
