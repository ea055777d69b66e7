// ring_enqueue_ on the GPU: its arguments and its launch; the kernel is in kernel.cuh.

#include "arguments.h"
#include "kernel.cuh"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

namespace vlkd {
namespace {

void ring_enqueue_cuda(
    const at::Tensor& rows,
    const at::Tensor& ids,
    const at::Tensor& head,
    const at::Tensor& fill,
    const at::Tensor& new_rows,
    const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& new_ids,
    bool normalize,
    const std::optional<at::Tensor>& scales,
    const std::optional<at::Tensor>& new_scales) {
  check_ring(rows, ids, head, fill, new_rows, mask, new_ids, scales, new_scales, normalize);
  if (rows.size(0) == 0 || new_rows.size(0) == 0) return;
  const c10::cuda::CUDAGuard device(rows.device());

  RingWrite p{};
  p.rows = rows.mutable_data_ptr();
  p.ids = ids.mutable_data_ptr<int64_t>();
  p.head = head.mutable_data_ptr<int64_t>();
  p.fill = fill.mutable_data_ptr<int64_t>();
  const at::Tensor arrivals = at::empty({1}, rows.options().dtype(at::kInt));
  p.arrivals = reinterpret_cast<unsigned*>(arrivals.mutable_data_ptr<int>());
  C10_CUDA_CHECK(cudaMemsetAsync(p.arrivals, 0, sizeof(unsigned), c10::cuda::getCurrentCUDAStream()));
  p.size = rows.size(0);
  p.width = rows.size(1);
  p.new_rows = new_rows.const_data_ptr();
  p.row_stride = new_rows.stride(0);
  p.column_stride = new_rows.stride(1);
  if (scales.has_value()) {
    p.scales = scales->mutable_data_ptr<float>();
    p.new_scales = new_scales->const_data_ptr<float>();
    p.scale_stride = new_scales->stride(0);
  }
  if (mask.has_value()) {
    p.mask = mask->const_data_ptr<bool>();
    p.mask_stride = mask->stride(0);
  }
  if (new_ids.has_value()) {
    p.new_ids = new_ids->const_data_ptr<int64_t>();
    p.id_stride = new_ids->stride(0);
  }
  p.count = new_rows.size(0);
  p.normalize = normalize;
  p.eps = kRingEps;
  cut_blocks(p);
  const auto launch = [](auto kernel, int64_t blocks, int threads, int shared, const RingWrite& problem) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared, c10::cuda::getCurrentCUDAStream()>>>(problem);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  ring_enqueue(p, element_of(rows.scalar_type()), element_of(new_rows.scalar_type()), launch);
  bump_versions({rows, ids, head, fill, scales.value_or(at::Tensor())});
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CUDA, m) {
  m.impl("ring_enqueue_", &ring_enqueue_cuda);
}

} // namespace vlkd
