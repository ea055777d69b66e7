// Small helpers that every op needs on tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cstdint>

namespace vlkd {

// Inside a kernel ATen is only a matrix product: no autograd graph and no autocast, which would round its operands.
struct PlainArithmetic {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// The type that sums are held in: float64 for float64 inputs, float32 for all others.
inline at::ScalarType accumulation_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// How many items of `work` elements one thread should take at least, so that starting it pays.
inline int64_t grain(int64_t work) {
  constexpr int64_t kWorthAThread = 16384;
  return std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work));
}

} // namespace vlkd
