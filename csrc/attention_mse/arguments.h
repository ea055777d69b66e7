// What attention_mse refuses, on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace vlkd {
namespace {

inline void check_side(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_s, const at::Tensor& k_s) {
  TORCH_CHECK(
      q.dim() == 4 && k.dim() == 4, "attention_mse: queries and keys must be 4-d, got ", q.sizes(), " and ", k.sizes());
  TORCH_CHECK(
      q.size(0) == q_s.size(0) && q.size(1) == q_s.size(1) && q.size(2) == q_s.size(2) && k.size(0) == q.size(0) &&
          k.size(2) == k_s.size(2) && k.size(3) == q.size(3) &&
          (q.size(1) == 0 || (k.size(1) > 0 && q.size(1) % k.size(1) == 0)),
      "attention_mse: shapes do not fit: queries ", q.sizes(), ", keys ", k.sizes(), ", student's queries ",
      q_s.sizes());
}

inline void check_arguments(
    const at::Tensor& q_s,
    const at::Tensor& k_s,
    const at::Tensor& q_t,
    const at::Tensor& k_t,
    const std::optional<at::Tensor>& attn_mask,
    const std::optional<at::Tensor>& query_mask,
    std::string_view distance) {
  check_side(q_s, k_s, q_s, k_s);
  check_side(q_t, k_t, q_s, k_s);
  TORCH_CHECK(
      distance == "mse" || distance == "kl", "attention_mse: distance must be 'mse' or 'kl', got '", distance, "'");
  TORCH_CHECK(
      !attn_mask.has_value() || (attn_mask->scalar_type() == at::kBool && attn_mask->dim() == 4),
      "attention_mse: attn_mask must be bool and 4-d");
  TORCH_CHECK(
      !query_mask.has_value() ||
          (query_mask->scalar_type() == at::kBool && query_mask->dim() == 2 && query_mask->size(0) == q_s.size(0) &&
           query_mask->size(1) == q_s.size(2)),
      "attention_mse: query_mask must be bool [B, L]");
}

} // namespace
} // namespace vlkd
