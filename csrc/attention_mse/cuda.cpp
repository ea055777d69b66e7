// attention_mse on the GPU: the arguments of the one kernel, which is in head.cuh.
//
// Legend: B batch, H heads, L queries, M keys, D head width.

#include "arguments.h"
#include "launch.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string_view>
#include <tuple>

namespace vlkd {
namespace {

constexpr double kLog2e = 1.4426950408889634;

// `type` is what the kernel multiplies.
HeadInput head_input(const at::Tensor& x, at::ScalarType type) {
  bool vectors = x.scalar_type() == type && x.stride(3) == 1 && x.size(3) % 8 == 0 &&
      reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int i = 0; i < 3; ++i) vectors = vectors && x.stride(i) % 8 == 0;
  return {
      x.const_data_ptr(), element_of(x.scalar_type()), vectors,
      {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}, static_cast<int>(x.size(3))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_mse_cuda(
    const at::Tensor& q_s,
    const at::Tensor& k_s,
    const at::Tensor& q_t,
    const at::Tensor& k_t,
    double scale_s,
    double scale_t,
    const std::optional<at::Tensor>& attn_mask,
    const std::optional<at::Tensor>& query_mask,
    bool is_causal,
    std::string_view distance,
    bool mean,
    bool with_grad) {
  check_arguments(q_s, k_s, q_t, k_t, attn_mask, query_mask, distance);
  const at::ScalarType type = q_s.scalar_type();
  TORCH_CHECK(type == at::kHalf || type == at::kBFloat16, "attention_mse: the CUDA kernel is for half precision, got ", type);
  const int64_t batch = q_s.size(0), heads = q_s.size(1), queries = q_s.size(2), keys = k_s.size(2), key_heads = k_s.size(1);
  const at::TensorOptions options = q_s.options().dtype(at::kFloat);
  const at::Tensor grad_q = at::empty(with_grad ? q_s.sizes() : at::IntArrayRef{0}, options);
  const at::Tensor grad_k = at::empty(with_grad ? k_s.sizes() : at::IntArrayRef{0}, options);
  const int64_t blocks = batch * key_heads;
  const at::Tensor sums = at::empty({2, blocks}, options);
  if (q_s.numel() == 0 || k_s.numel() == 0) {
    grad_q.zero_();
    grad_k.zero_();
    sums.zero_();
  } else {
    TORCH_CHECK(
        blocks <= std::numeric_limits<int>::max() && queries <= std::numeric_limits<int>::max() / 2,
        "attention_mse: too large for the CUDA kernel: ", q_s.sizes());
    HeadProblem problem{};
    problem.q_s = head_input(q_s, type);
    problem.k_s = head_input(k_s, type);
    problem.q_t = head_input(q_t, type);
    problem.k_t = head_input(k_t, type);
    if (attn_mask.has_value()) {
      const at::Tensor mask = attn_mask->expand({batch, heads, queries, keys});
      problem.mask = mask.const_data_ptr<bool>();
      std::copy_n(mask.strides().begin(), 4, problem.mask_strides);
    }
    if (query_mask.has_value()) {
      const at::Tensor counted = query_mask->expand({batch, queries});
      problem.counted = counted.const_data_ptr<bool>();
      std::copy_n(counted.strides().begin(), 2, problem.counted_strides);
    }
    problem.heads = static_cast<int>(heads);
    problem.group_s = static_cast<int>(heads / key_heads);
    problem.group_t = static_cast<int>(heads / k_t.size(1));
    problem.queries = static_cast<int>(queries);
    problem.keys = static_cast<int>(std::min<int64_t>(keys, std::numeric_limits<int>::max())); // too many for any plan
    problem.scale_s = static_cast<float>(scale_s * kLog2e);
    problem.scale_t = static_cast<float>(scale_t * kLog2e);
    problem.gradient_scale = static_cast<float>(scale_s);
    problem.causal = is_causal;
    problem.kl = distance == "kl";
    problem.with_grad = with_grad;
    problem.loss = sums.mutable_data_ptr<float>();
    problem.count = problem.loss + blocks;
    problem.grad_q = grad_q.mutable_data_ptr<float>();
    problem.grad_k = grad_k.mutable_data_ptr<float>();
    const c10::cuda::CUDAGuard device(q_s.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const bool found = visit_plan(problem.keys, problem.q_s.width, problem.q_t.width, [&](auto plan) {
      if (type == at::kHalf) {
        launch_head<c10::Half, decltype(plan)>(problem, blocks, stream);
      } else {
        launch_head<c10::BFloat16, decltype(plan)>(problem, blocks, stream);
      }
    });
    TORCH_CHECK(
        found, "attention_mse: no CUDA kernel for keys ", k_s.sizes(), " and ", k_t.sizes(), "; see visit_plan in plan.h");
  }
  const at::Tensor totals = sums.sum(1);
  const at::Tensor count = totals[1], scale = mean ? count.clamp_min(1).reciprocal() : at::scalar_tensor(1, options);
  return {totals[0] * scale, count, scale, grad_q, grad_k};
}

} // namespace

std::optional<int> attention_mse_shared_bytes(int64_t keys, int64_t width, int64_t width_t) {
  const auto small = [](int64_t size) { return static_cast<int>(std::min<int64_t>(size, std::numeric_limits<int>::max())); };
  std::optional<int> bytes;
  visit_plan(small(keys), small(width), small(width_t), [&](auto plan) { bytes = decltype(plan)::shared_bytes(small(keys)); });
  return bytes;
}

TORCH_LIBRARY_IMPL(vlkd, CUDA, m) {
  m.impl("attention_mse", &attention_mse_cuda);
}

} // namespace vlkd
