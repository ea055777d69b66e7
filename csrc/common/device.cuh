// What every kernel needs: the shared memory of its launch, warps, and inputs of any dtype.
#pragma once

#include "element.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#ifdef __CUDACC__ // else whoever includes this brings it for a processor (tests/kernels/emulation)
// The shared memory that a launch asked for, as bytes.
#define VLKD_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace vlkd {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Of a floating-point dtype.
__device__ inline float element(const void* data, Element type, int64_t at) {
  switch (type) {
    case Element::kHalf: return static_cast<const c10::Half*>(data)[at];
    case Element::kBFloat16: return static_cast<const c10::BFloat16*>(data)[at];
    case Element::kFloat: return static_cast<const float*>(data)[at];
    default: return static_cast<float>(static_cast<const double*>(data)[at]);
  }
}

// x, NaN where it is infinite: an infinity can make a finite loss of numbers that have no meaning.
__device__ inline float exact(float x) {
  return x + x * 0.0f;
}

// A count that is kept on the device, brought into [0, limit]: what lies behind is nobody's memory.
__host__ __device__ inline int64_t within(int64_t count, int64_t limit) {
  return count < 0 ? 0 : count < limit ? count : limit;
}

template <typename T>
__device__ T warp_sum(T x) { // the same bits in every lane
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kWholeWarp, x, offset);
  return x;
}

} // namespace vlkd
