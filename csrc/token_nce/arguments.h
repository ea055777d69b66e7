// What token_nce refuses, on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace vlkd {
namespace {

inline void check_arguments(
    const at::Tensor& h_s,
    const at::Tensor& h_t,
    const at::Tensor& negatives,
    const std::optional<at::Tensor>& fill,
    const std::optional<at::Tensor>& negative_ids,
    const std::optional<at::Tensor>& token_mask,
    const std::optional<at::Tensor>& token_ids,
    const std::optional<double>& temperature,
    const std::optional<at::Tensor>& temperature_tensor) {
  TORCH_CHECK(
      h_s.dim() == 2 && h_s.sizes() == h_t.sizes() && negatives.dim() == 2 && negatives.size(1) == h_s.size(1),
      "token_nce: expected h_s and h_t [N, E] and negatives [K, E], got ", h_s.sizes(), ", ", h_t.sizes(), " and ",
      negatives.sizes());
  const auto holds = [](const std::optional<at::Tensor>& x, at::ScalarType type, int64_t size) {
    return !x.has_value() || (x->scalar_type() == type && x->dim() == 1 && x->size(0) == size);
  };
  TORCH_CHECK(
      holds(token_mask, at::kBool, h_s.size(0)) && holds(token_ids, at::kLong, h_s.size(0)) &&
          holds(negative_ids, at::kLong, negatives.size(0)),
      "token_nce: expected token_mask bool [N], token_ids int64 [N] and negative_ids int64 [K]");
  TORCH_CHECK(
      !fill.has_value() || (fill->scalar_type() == at::kLong && fill->numel() == 1), "token_nce: fill must be one int64");
  TORCH_CHECK(
      temperature.has_value() != temperature_tensor.has_value(),
      "token_nce: give temperature or temperature_tensor, one of the two");
}

} // namespace
} // namespace vlkd
