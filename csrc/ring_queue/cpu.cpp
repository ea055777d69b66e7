// ring_enqueue_ on the CPU. Legend: K queue rows, E embedding width, N new rows.

#include "../common/tensors.h"
#include "arguments.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace vlkd {
namespace {

// One row into its slot; with `normalize` divided by max(norm, eps), in float32 or wider.
// A `Stride` that is the constant 1 lets the loops become vector instructions.
template <typename To, typename From, typename Stride>
void write_row(To* __restrict to, const From* __restrict from, Stride stride, int64_t width, bool normalize) {
  if (!normalize) {
    for (int64_t e = 0; e < width; ++e) to[e] = static_cast<To>(from[e * stride]);
    return;
  }
  using Sum = std::conditional_t<std::is_same_v<From, double>, double, float>;
  Sum squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t e = 0; e < width; ++e) squares += static_cast<Sum>(from[e * stride]) * static_cast<Sum>(from[e * stride]);
  Sum norm = std::max(std::sqrt(squares), static_cast<Sum>(kRingEps)); // a NaN stays one
  if (std::isinf(norm)) norm = std::numeric_limits<Sum>::quiet_NaN(); // rows of 0 would hide that it overflowed
  for (int64_t e = 0; e < width; ++e) to[e] = static_cast<To>(static_cast<Sum>(from[e * stride]) / norm);
}

void ring_enqueue_cpu(
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
  const int64_t size = rows.size(0), width = rows.size(1);
  if (size == 0 || new_rows.size(0) == 0) return;

  std::vector<int64_t> written; // which new rows go in, in order
  const at::Tensor chosen = mask.has_value() ? mask->contiguous() : at::Tensor();
  for (int64_t i = 0; i < new_rows.size(0); ++i) {
    if (!chosen.defined() || chosen.const_data_ptr<bool>()[i]) written.push_back(i);
  }
  const int64_t total = static_cast<int64_t>(written.size()), dropped = std::max<int64_t>(0, total - size);
  int64_t& next = *head.mutable_data_ptr<int64_t>();
  int64_t& filled = *fill.mutable_data_ptr<int64_t>();
  int64_t* slot_ids = ids.mutable_data_ptr<int64_t>();

  const auto write = [&](auto* slots, const auto* source) {
    at::parallel_for(dropped, total, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        const int64_t slot = (next + place) % size, i = written[place];
        const auto write_from = [&](auto stride) {
          write_row(slots + slot * width, source + i * new_rows.stride(0), stride, width, normalize);
        };
        new_rows.stride(1) == 1 ? write_from(std::integral_constant<int64_t, 1>()) : write_from(new_rows.stride(1));
        slot_ids[slot] = new_ids.has_value() ? new_ids->const_data_ptr<int64_t>()[i * new_ids->stride(0)] : -1;
        if (scales.has_value()) {
          scales->mutable_data_ptr<float>()[slot] = new_scales->const_data_ptr<float>()[i * new_scales->stride(0)];
        }
      }
    });
  };
  if (rows.scalar_type() == at::kByte) {
    write(rows.mutable_data_ptr<uint8_t>(), new_rows.const_data_ptr<uint8_t>());
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "vlkd::ring_enqueue_", [&] {
      using To = scalar_t;
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, new_rows.scalar_type(), "vlkd::ring_enqueue_", [&] {
        write(rows.mutable_data_ptr<To>(), new_rows.const_data_ptr<scalar_t>());
      });
    });
  }
  next = (next + total) % size;
  filled = std::min(size, std::clamp<int64_t>(filled, 0, size) + total);
  bump_versions({rows, ids, head, fill, scales.value_or(at::Tensor())});
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CPU, m) {
  m.impl("ring_enqueue_", &ring_enqueue_cpu);
}

} // namespace vlkd
