// ring_enqueue_ on the GPU, in two launches and without asking the host: shapes are fixed by the arguments, and the
// number of rows that the mask lets through stays on the device, so that the call can be captured in a graph.
//
// Legend: K queue rows, E embedding width, N new rows.
// `plan` (one block) counts the masked rows by a prefix sum, gives each new row its slot (or none), moves head, fill;
// `write` (a warp a row) converts, normalises and stores. Slots are distinct, so the warps' order does not matter.

#include "ring_queue.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

namespace vlkd {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kWriteThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = 1 << 16;
constexpr int64_t kNoSlot = -1;
constexpr unsigned kWholeWarp = 0xffffffffu;

// The sum of `value` over the threads before this one; `total` gets that over all. Every thread of the block calls it.
__device__ int64_t exclusive_block_sum(int64_t value, int64_t& total) {
  __shared__ int64_t warp_sums[kPlanThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t inclusive = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t other = __shfl_up_sync(kWholeWarp, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  int64_t before = 0, all = 0;
  for (int w = 0; w < kPlanThreads / kWarp; ++w) {
    before += w < warp ? warp_sums[w] : 0;
    all += warp_sums[w];
  }
  total = all;
  return before + inclusive - value;
}

__global__ void __launch_bounds__(kPlanThreads, 1) plan(
    int64_t* __restrict__ slots, // [N]
    int64_t* __restrict__ head,
    int64_t* __restrict__ fill,
    const bool* __restrict__ mask, // [N] by stride, or null
    int64_t mask_stride,
    int64_t count,  // N
    int64_t size) { // K
  // Each thread takes a run of neighbouring rows, so that one prefix sum over the threads is enough.
  const int64_t run = (count + kPlanThreads - 1) / kPlanThreads;
  const int64_t begin = min(run * static_cast<int64_t>(threadIdx.x), count), end = min(begin + run, count);
  int64_t mine = end - begin;
  if (mask != nullptr) {
    mine = 0;
    for (int64_t i = begin; i < end; ++i) mine += mask[i * mask_stride];
  }
  int64_t total = 0;
  int64_t place = exclusive_block_sum(mine, total);
  const int64_t first = *head;
  for (int64_t i = begin; i < end; ++i) {
    const bool written = mask == nullptr || mask[i * mask_stride];
    slots[i] = written && place >= total - size ? (first + place) % size : kNoSlot;
    place += written;
  }
  __syncthreads(); // everyone has read head
  if (threadIdx.x == 0) {
    *head = (first + total) % size;
    *fill = min(size, *fill + total);
  }
}

template <typename Sum>
__device__ Sum warp_sum(Sum value) { // the same order for every lane, so all of them get the same bits
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

template <typename To, typename From>
__global__ void __launch_bounds__(kWriteThreads, 1) write(
    To* __restrict__ rows,             // [K, E]
    int64_t* __restrict__ ids,         // [K]
    const int64_t* __restrict__ slots, // [N]
    const From* __restrict__ new_rows, // [N, E] by strides
    int64_t row_stride,
    int64_t stride,
    const int64_t* __restrict__ new_ids, // [N] by stride, or null
    int64_t id_stride,
    int64_t count, // N
    int64_t width, // E
    bool normalize) {
  using Sum = std::conditional_t<std::is_same_v<From, double>, double, float>;
  constexpr int kWarps = kWriteThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  for (int64_t i = first; i < count; i += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t slot = slots[i];
    if (slot == kNoSlot) continue; // the whole warp, for the slot is the row's
    const From* from = new_rows + i * row_stride;
    To* to = rows + slot * width;
    if (normalize) {
      Sum squares = 0;
      for (int64_t e = lane; e < width; e += kWarp) {
        const Sum x = static_cast<Sum>(from[e * stride]);
        squares += x * x;
      }
      const Sum norm = max(sqrt(warp_sum(squares)), static_cast<Sum>(kRingEps));
      for (int64_t e = lane; e < width; e += kWarp) to[e] = static_cast<To>(static_cast<Sum>(from[e * stride]) / norm);
    } else {
      for (int64_t e = lane; e < width; e += kWarp) to[e] = static_cast<To>(from[e * stride]);
    }
    if (lane == 0) ids[slot] = new_ids == nullptr ? -1 : new_ids[i * id_stride];
  }
}

void ring_enqueue_cuda(
    const at::Tensor& rows,
    const at::Tensor& ids,
    const at::Tensor& head,
    const at::Tensor& fill,
    const at::Tensor& new_rows,
    const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& new_ids,
    bool normalize) {
  check_ring(rows, ids, head, fill, new_rows, mask, new_ids);
  const int64_t size = rows.size(0), width = rows.size(1), count = new_rows.size(0);
  if (size == 0 || count == 0) return;
  const c10::cuda::CUDAGuard device(rows.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor slots = at::empty({count}, ids.options());
  plan<<<1, kPlanThreads, 0, stream>>>(
      slots.mutable_data_ptr<int64_t>(), head.mutable_data_ptr<int64_t>(), fill.mutable_data_ptr<int64_t>(),
      mask.has_value() ? mask->const_data_ptr<bool>() : nullptr, mask.has_value() ? mask->stride(0) : 0, count, size);
  C10_CUDA_KERNEL_LAUNCH_CHECK();

  constexpr int kWarps = kWriteThreads / kWarp;
  const auto blocks = static_cast<unsigned>(std::min((count + kWarps - 1) / kWarps, kMostBlocks));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "vlkd::ring_enqueue_", [&] {
    using To = scalar_t;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, new_rows.scalar_type(), "vlkd::ring_enqueue_", [&] {
      write<To, scalar_t><<<blocks, kWriteThreads, 0, stream>>>(
          rows.mutable_data_ptr<To>(), ids.mutable_data_ptr<int64_t>(), slots.const_data_ptr<int64_t>(),
          new_rows.const_data_ptr<scalar_t>(), new_rows.stride(0), new_rows.stride(1),
          new_ids.has_value() ? new_ids->const_data_ptr<int64_t>() : nullptr,
          new_ids.has_value() ? new_ids->stride(0) : 0, count, width, normalize);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  bump_versions({rows, ids, head, fill});
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CUDA, m) {
  m.impl("ring_enqueue_", &ring_enqueue_cuda);
}

} // namespace vlkd
