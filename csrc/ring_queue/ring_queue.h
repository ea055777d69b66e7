// What the two implementations of ring_enqueue_ share. Legend: K queue rows, E embedding width, N new rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

namespace vlkd {

constexpr double kRingEps = 1e-12; // the smallest norm that a row is divided by

inline void check_ring(
    const at::Tensor& rows,                     // [K, E]
    const at::Tensor& ids,                      // int64 [K]
    const at::Tensor& head,                     // int64, 0-d
    const at::Tensor& fill,                     // int64, 0-d
    const at::Tensor& new_rows,                 // [N, E]
    const std::optional<at::Tensor>& mask,      // bool [N]
    const std::optional<at::Tensor>& new_ids) { // int64 [N]
  TORCH_CHECK(
      rows.dim() == 2 && rows.is_contiguous() && ids.is_contiguous() && ids.dim() == 1 && ids.size(0) == rows.size(0) &&
          head.numel() == 1 && fill.numel() == 1,
      "ring_enqueue_: expected contiguous rows [K, E] and ids [K], head and fill of one element, got rows ",
      rows.sizes(), ", ids ", ids.sizes());
  TORCH_CHECK(
      new_rows.dim() == 2 && new_rows.size(1) == rows.size(1), "ring_enqueue_: expected new rows [N, ", rows.size(1),
      "], got ", new_rows.sizes());
  const auto holds = [&](const at::Tensor& x, at::ScalarType type) {
    return x.scalar_type() == type && x.device() == rows.device();
  };
  TORCH_CHECK(
      holds(ids, at::kLong) && holds(head, at::kLong) && holds(fill, at::kLong) && new_rows.device() == rows.device(),
      "ring_enqueue_: expected int64 ids, head and fill, and everything on ", rows.device());
  const auto fits = [&](const std::optional<at::Tensor>& x, at::ScalarType type) {
    return !x.has_value() || (holds(*x, type) && x->dim() == 1 && x->size(0) == new_rows.size(0));
  };
  TORCH_CHECK(
      fits(mask, at::kBool) && fits(new_ids, at::kLong), "ring_enqueue_: expected mask bool [N] and new_ids int64 [N]");
}

// Tells autograd that saved references to these tensors are stale.
inline void bump_versions(std::initializer_list<at::Tensor> changed) {
  for (const auto& tensor : changed) {
    if (!tensor.is_inference()) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

} // namespace vlkd
