// Every operator's schema on one page, and the Python module that tells how this library was built.
//
// Legend: B batch, H heads, L queries, M keys, D head width, N tokens, E embedding width, K queue rows.
// Losses and `count`, the number of rows or tokens that count, are 0-d, float32 (float64 for float64 inputs); gradients are of
// the same type, and empty when `with_grad` is false. `loss_sum` is not normalised, and its gradients are not.

#include "common/instruction_set.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>
#include <torch/version.h>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>

TORCH_LIBRARY(vlkd, m) {
  // q_s [B, H, L, Ds], k_s [B, Hs, M, Ds], q_t [B, H, L, Dt], k_t [B, Ht, M, Dt]; Hs and Ht divide H.
  // attn_mask bool, 4-d, broadcastable to [B, H, L, M]; query_mask bool [B, L]; distance "mse" or "kl".
  // loss is the mean over the counted rows or their sum. grad_q has the shape of q_s, grad_k of k_s; multiplied by `scale`,
  // 0-d, they are the gradients of `loss`: a kernel that knows the count only at its end leaves the division to its caller.
  m.def(
      "attention_mse(Tensor q_s, Tensor k_s, Tensor q_t, Tensor k_t, float scale_s, float scale_t, "
      "Tensor? attn_mask, Tensor? query_mask, bool is_causal, str distance, bool mean, bool with_grad) "
      "-> (Tensor loss, Tensor count, Tensor scale, Tensor grad_q, Tensor grad_k)");

  // h_s, h_t [N, E], negatives [K, E], fill int64 0-d, negative_ids int64 [K]; token_mask bool and token_ids int64 [N].
  // Exactly one of `temperature` and `temperature_tensor` (0-d) is given. grad_h [N, E], grad_temperature 0-d;
  // values [4, N]: loss, positive similarity, mean negative similarity, whether the positive is at the top.
  m.def(
      "token_nce(Tensor h_s, Tensor h_t, Tensor negatives, Tensor? fill, Tensor? negative_ids, Tensor? token_mask, "
      "Tensor? token_ids, float? temperature, Tensor? temperature_tensor, bool normalize, bool normalize_negatives, "
      "bool in_batch, bool with_grad) "
      "-> (Tensor loss_sum, Tensor count, Tensor grad_h, Tensor grad_temperature, Tensor values)");

  // rows [K, E], ids int64 [K], head and fill int64 0-d; new_rows [N, E], mask bool [N], new_ids int64 [N].
  // Rows are of a floating-point dtype, or the bits of float8 as uint8, with scales float32 [K] and new_scales float32 [N].
  m.def(
      "ring_enqueue_(Tensor(a!) rows, Tensor(b!) ids, Tensor(c!) head, Tensor(d!) fill, Tensor new_rows, "
      "Tensor? mask, Tensor? new_ids, bool normalize, Tensor(e!)? scales=None, Tensor? new_scales=None) -> ()");
}

// The losses return their gradients; the Python operators scale them. A backward through the raw operator is an error.
TORCH_LIBRARY_IMPL(vlkd, Autograd, m) {
  m.impl("attention_mse", torch::autograd::autogradNotImplementedFallback());
  m.impl("token_nce", torch::autograd::autogradNotImplementedFallback());
  m.impl("ring_enqueue_", torch::autograd::autogradNotImplementedFallback());
}

#ifdef VLKD_CUDA_VERSION
namespace vlkd {
std::optional<int> attention_mse_shared_bytes(int64_t keys, int64_t width, int64_t width_t); // attention_mse/cuda.cpp
}
#endif

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["cxx_standard"] = __cplusplus;
  info["cxx_flags"] = VLKD_CXX_FLAGS;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["torch"] = TORCH_VERSION;
#ifdef VLKD_CUDA_VERSION
  info["cuda"] = true;
  info["cuda_version"] = VLKD_CUDA_VERSION;
  info["cuda_architectures"] = VLKD_CUDA_ARCHITECTURES;
  info["nvcc_flags"] = VLKD_NVCC_FLAGS;
#else
  info["cuda"] = false;
#endif
  return info;
}

} // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled operators of vlkd_kernels, reached through torch.ops.vlkd.";
  m.def("build_info", &build_info, "How this library was compiled, as a dict.");
  m.def("instruction_set", &vlkd::instruction_set_name, "What this process multiplies with, of what was compiled.");
#ifdef VLKD_CUDA_VERSION
  m.def(
      "attention_mse_shared_bytes", &vlkd::attention_mse_shared_bytes,
      "Shared memory of a block of attention_mse's CUDA kernel for some keys, the student's and the teacher's head width; "
      "None if there is no kernel for them.");
#endif
}
