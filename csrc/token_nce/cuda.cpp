// token_nce on the GPU: its arguments and memory; the kernels are in kernels.cuh.
//
// Legend: N tokens, E embedding width, K negatives, C tokens and J candidates of a chunk.

#include "arguments.h"
#include "launch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace vlkd {
namespace {

RowsInput rows_input(const at::Tensor& x) {
  return {x.const_data_ptr(), element_of(x.scalar_type()), x.stride(0), x.stride(1)};
}

// Whether the products can take rows from where they lie.
bool in_place(const at::Tensor& x, at::ScalarType type) {
  return x.scalar_type() == type && x.stride(1) == 1 && x.stride(0) % 8 == 0 && x.size(1) % 8 == 0 &&
      reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> token_nce_cuda(
    const at::Tensor& h_s,
    const at::Tensor& h_t,
    const at::Tensor& negatives,
    const std::optional<at::Tensor>& fill,
    const std::optional<at::Tensor>& negative_ids,
    const std::optional<at::Tensor>& token_mask,
    const std::optional<at::Tensor>& token_ids,
    std::optional<double> temperature,
    const std::optional<at::Tensor>& temperature_tensor,
    bool normalize,
    bool normalize_negatives,
    bool in_batch,
    bool with_grad) {
  check_arguments(h_s, h_t, negatives, fill, negative_ids, token_mask, token_ids, temperature, temperature_tensor);
  const at::ScalarType type = h_s.scalar_type();
  TORCH_CHECK(type == at::kHalf || type == at::kBFloat16, "token_nce: the CUDA kernels are for half precision, got ", type);
  const c10::cuda::CUDAGuard device(h_s.device());
  const at::TensorOptions options = h_s.options().dtype(at::kFloat);
  const int64_t tokens = h_s.size(0), width = h_s.size(1), rows = negatives.size(0);
  at::Tensor gradient = at::empty(with_grad ? h_s.sizes() : at::IntArrayRef{0}, options);
  if (h_s.numel() == 0) {
    const auto zero = [&] { return at::zeros({}, options); };
    return {zero(), zero(), gradient.zero_(), zero(), at::zeros({4, tokens}, options)};
  }
  const auto contiguous = [](const std::optional<at::Tensor>& x) { return x.has_value() ? x->contiguous() : at::Tensor(); };
  const at::Tensor mask = contiguous(token_mask), ids = contiguous(token_ids), other_ids = contiguous(negative_ids);
  const auto pointer = [](const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; };

  NceProblem p{};
  p.h_s = rows_input(h_s);
  p.h_t = rows_input(h_t);
  p.negatives = rows_input(negatives);
  p.tokens = tokens;
  p.rows = rows;
  p.columns = rows + (in_batch ? tokens : 0);
  p.width = width;
  p.token_mask = static_cast<const bool*>(pointer(mask));
  p.token_ids = static_cast<const int64_t*>(pointer(ids));
  p.negative_ids = static_cast<const int64_t*>(pointer(other_ids));
  p.fill = fill.has_value() ? fill->const_data_ptr<int64_t>() : nullptr;
  p.temperature = static_cast<float>(temperature.value_or(0.0));
  if (temperature_tensor.has_value()) {
    p.temperature_tensor = temperature_tensor->const_data_ptr();
    p.temperature_type = element_of(temperature_tensor->scalar_type());
  }
  p.normalize = normalize;
  p.normalize_negatives = normalize_negatives;
  p.with_grad = with_grad;

  p.copy_students = !in_place(h_s, type);
  // bfloat16 weights may be divided by any length, float16 ones only by one near 1, which the copy sees to.
  p.copy_candidates = in_batch || (normalize_negatives && type == at::kHalf) || !in_place(negatives, type);
  const int64_t stride = padded_width(width);
  const at::Tensor students = p.copy_students ? at::empty({tokens, stride}, h_s.options()) : h_s;
  const at::Tensor candidates = p.copy_candidates ? at::empty({p.columns, stride}, h_s.options()) : negatives;
  p.students = students.const_data_ptr();
  p.student_stride = students.stride(0);
  p.candidates = candidates.const_data_ptr();
  p.candidate_stride = candidates.stride(0);
  const bool divided = p.copy_candidates || normalize_negatives;
  const at::Tensor divisors = at::empty({divided ? p.columns : 0}, options);
  p.divisors = divided ? divisors.mutable_data_ptr<float>() : nullptr;

  cut_chunks(p);
  const at::Tensor weights = at::empty({with_grad ? p.chunk : 0, p.candidate_chunk}, h_s.options());
  const at::Tensor partial = at::empty({kSums, p.candidate_chunk / kTile, p.chunk}, options);
  const at::Tensor state = at::empty({kSums, tokens}, options), change = at::empty({p.chunk}, options);
  const at::Tensor of_tokens = at::empty({6, tokens}, options), values = at::empty({4, tokens}, options);
  const auto of_token = [&](int i) { return of_tokens.mutable_data_ptr<float>() + i * tokens; };
  p.weights = weights.mutable_data_ptr();
  p.partial = partial.mutable_data_ptr<float>();
  p.state = state.mutable_data_ptr<float>();
  p.change = change.mutable_data_ptr<float>();
  p.norm_s = of_token(0);
  p.norm_t = of_token(1);
  p.positives = of_token(2);
  p.masses = of_token(3);
  p.scales = of_token(4);
  p.grad_temperature = of_token(5);
  p.gradient = with_grad ? gradient.mutable_data_ptr<float>() : nullptr;
  p.values = values.mutable_data_ptr<float>();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  type == at::kHalf ? launch_token_nce<c10::Half>(p, stream) : launch_token_nce<c10::BFloat16>(p, stream);

  const at::Tensor count = mask.defined() ? mask.sum(at::kFloat) : at::full({}, static_cast<double>(tokens), options);
  const at::Tensor grad_temperature = with_grad ? of_tokens.select(0, 5).sum() : at::zeros({}, options);
  return {values.select(0, 0).sum(), count, gradient, grad_temperature, values};
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CUDA, m) {
  m.impl("token_nce", &token_nce_cuda);
}

} // namespace vlkd
