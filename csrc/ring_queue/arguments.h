// What ring_enqueue_ refuses on every device, and what it tells autograd. Legend: K queue rows, E width, N new rows.
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
    const at::Tensor& new_rows,                   // [N, E]
    const std::optional<at::Tensor>& mask,        // bool [N]
    const std::optional<at::Tensor>& new_ids,     // int64 [N]
    const std::optional<at::Tensor>& scales,      // float32 [K]
    const std::optional<at::Tensor>& new_scales,  // float32 [N]
    bool normalize) {
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
  const auto fits = [&](const std::optional<at::Tensor>& x, at::ScalarType type, int64_t size) {
    return !x.has_value() || (holds(*x, type) && x->dim() == 1 && x->size(0) == size);
  };
  const int64_t count = new_rows.size(0);
  TORCH_CHECK(
      fits(mask, at::kBool, count) && fits(new_ids, at::kLong, count),
      "ring_enqueue_: expected mask bool [N] and new_ids int64 [N]");
  TORCH_CHECK(
      scales.has_value() == new_scales.has_value() && fits(scales, at::kFloat, rows.size(0)) &&
          fits(new_scales, at::kFloat, count) && (!scales.has_value() || scales->is_contiguous()),
      "ring_enqueue_: expected scales float32 [K] and new_scales float32 [N], or neither");
  const bool bytes = rows.scalar_type() == at::kByte;
  TORCH_CHECK(
      bytes ? new_rows.scalar_type() == at::kByte && !normalize
            : at::isFloatingType(rows.scalar_type()) && at::isFloatingType(new_rows.scalar_type()),
      "ring_enqueue_: expected floating-point rows, or uint8 rows that are not to be normalised, got ", rows.scalar_type(),
      " and ", new_rows.scalar_type());
}

// Tells autograd that saved references to these tensors are stale.
inline void bump_versions(std::initializer_list<at::Tensor> changed) {
  for (const auto& tensor : changed) {
    if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

} // namespace vlkd
