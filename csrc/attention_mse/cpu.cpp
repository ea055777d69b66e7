// attention_mse on the CPU: the distance between two attention maps and its gradient, one chunk of the maps at a time.
//
// Legend: B batch, H heads, L queries, M keys, D head width; a chunk holds G heads and R of their query rows.
// A chunk is either whole maps of several heads (R = L) or some rows of one head (G = 1). ATen multiplies the matrices;
// the loop over a row between the two products is ours. With p, t the two softmaxes of a row, m its visible keys:
//   mse  value = (1/m) sum_j (p_j - t_j)^2,         g_j = (2/m) p_j (d_j - sum_k p_k d_k),  d = p - t
//   kl   value = sum_j t_j (log t_j - log p_j),     g_j = p_j - t_j
//   dQ = scale_s g K,  dK = scale_s g^T Q.

#include "../common/tensors.h"
#include "rows.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace vlkd {
namespace {

constexpr int64_t kChunkPerThread = 1 << 18; // entries of one map: 1 MiB in float32, a core's second-level cache
constexpr int64_t kLargestChunk = 1 << 21;   // 8 MiB; the two maps together take 16

// Rows [row, row + R) of heads [first, first + G) of src [B, H or fewer, rows, D], converted, to out [G, R, D].
template <typename T>
void load_heads(T* out, const at::Tensor& src, HeadOf of, int64_t first, int64_t heads, int64_t row, int64_t rows) {
  const int64_t width = src.size(3), stride = src.stride(3);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, src.scalar_type(), "vlkd::attention_mse", [&] {
    const scalar_t* data = src.const_data_ptr<scalar_t>();
    at::parallel_for(0, heads * rows, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t index = first + i / rows;
        const scalar_t* from =
            data + of.batch(index) * src.stride(0) + of.head(index) * src.stride(1) + (row + i % rows) * src.stride(2);
        T* to = out + i * width;
        if (stride == 1) {
          for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d]);
        } else {
          for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d * stride]);
        }
      }
    });
  });
}

// a [G, R, D] @ b [G, D, M] into out, or added to it.
void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool add = false) {
  if (add) {
    at::baddbmm_out(out, out, a, b);
  } else {
    at::bmm_out(out, a, b);
  }
}

template <typename T>
class AttentionMse {
 public:
  AttentionMse(const at::Tensor& q_s, const at::Tensor& k_s, const at::Tensor& q_t, const at::Tensor& k_t)
      : q_s_(q_s),
        k_s_(k_s),
        q_t_(q_t),
        k_t_(k_t),
        heads_(q_s.size(1)),
        all_heads_(q_s.size(0) * q_s.size(1)),
        queries_(q_s.size(2)),
        keys_(k_s.size(2)),
        of_s_{heads_, heads_ / std::max<int64_t>(1, k_s.size(1))},
        of_t_{heads_, heads_ / std::max<int64_t>(1, k_t.size(1))},
        options_(q_s.options().dtype(accumulation_type(q_s))) {}

  using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

  Outputs run(T scale_s, T scale_t, const Visibility& visibility, bool kl, bool with_grad) {
    grad_q_ = with_grad ? at::zeros(q_s_.sizes(), options_) : at::empty({0}, options_);
    grad_k_ = with_grad ? at::zeros(k_s_.sizes(), options_) : at::empty({0}, options_);
    if (all_heads_ > 0 && queries_ > 0 && keys_ > 0) {
      allocate(with_grad);
      Rows<T> work{};
      work.of = HeadOf{heads_, 1};
      work.keys = keys_;
      work.scale_s = scale_s;
      work.scale_t = scale_t;
      work.visibility = visibility;
      work.kl = kl;
      work.with_grad = with_grad;
      for (int64_t head = 0; head < all_heads_; head += chunk_heads_) {
        run_heads(work, head, std::min(chunk_heads_, all_heads_ - head));
      }
    }
    return {
        at::scalar_tensor(loss_, options_), at::scalar_tensor(static_cast<double>(count_), options_), grad_q_, grad_k_};
  }

 private:
  void allocate(bool with_grad) {
    const int64_t entries = std::min(kLargestChunk, kChunkPerThread * at::get_num_threads());
    chunk_rows_ = std::clamp<int64_t>(entries / keys_, 1, queries_);
    chunk_heads_ = chunk_rows_ < queries_ ? 1 : std::clamp<int64_t>(entries / (queries_ * keys_), 1, all_heads_);
    map_s_ = at::empty({chunk_heads_, chunk_rows_, keys_}, options_);
    map_t_ = at::empty({chunk_heads_, chunk_rows_, keys_}, options_);
    tile_q_s_ = at::empty({chunk_heads_, chunk_rows_, q_s_.size(3)}, options_);
    tile_q_t_ = at::empty({chunk_heads_, chunk_rows_, q_t_.size(3)}, options_);
    tile_k_s_ = at::empty({chunk_heads_, keys_, k_s_.size(3)}, options_);
    tile_k_t_ = at::empty({chunk_heads_, keys_, k_t_.size(3)}, options_);
    if (with_grad) tile_grad_k_ = at::empty({chunk_heads_, keys_, k_s_.size(3)}, options_);
    values_.resize(chunk_heads_ * chunk_rows_);
    counts_ = at::empty({chunk_heads_ * chunk_rows_}, options_.dtype(at::kBool));
  }

  void run_heads(Rows<T>& work, int64_t head, int64_t heads) {
    const at::Tensor k_s = tile_k_s_.narrow(0, 0, heads), k_t = tile_k_t_.narrow(0, 0, heads);
    load_heads(k_s.mutable_data_ptr<T>(), k_s_, of_s_, head, heads, 0, keys_);
    load_heads(k_t.mutable_data_ptr<T>(), k_t_, of_t_, head, heads, 0, keys_);
    work.first_head = head;
    for (int64_t row = 0; row < queries_; row += chunk_rows_) {
      run_rows(work, heads, row, std::min(chunk_rows_, queries_ - row), k_s, k_t);
    }
    if (work.with_grad) add_grad_k(head, heads);
  }

  void run_rows(Rows<T>& work, int64_t heads, int64_t row, int64_t rows, const at::Tensor& k_s, const at::Tensor& k_t) {
    const auto part = [&](const at::Tensor& tile) { return tile.narrow(0, 0, heads).narrow(1, 0, rows); };
    const at::Tensor q_s = part(tile_q_s_), q_t = part(tile_q_t_), s = part(map_s_), t = part(map_t_);
    const HeadOf each{heads_, 1};
    load_heads(q_s.mutable_data_ptr<T>(), q_s_, each, work.first_head, heads, row, rows);
    load_heads(q_t.mutable_data_ptr<T>(), q_t_, each, work.first_head, heads, row, rows);
    multiply(s, q_s, k_s.transpose(1, 2));
    multiply(t, q_t, k_t.transpose(1, 2));
    work.s = s.mutable_data_ptr<T>();
    work.t = t.mutable_data_ptr<T>();
    work.values = values_.data();
    work.counts = counts_.mutable_data_ptr<bool>();
    work.first_row = row;
    work.rows = rows;
    at::parallel_for(
        0, heads * rows, grain(keys_), [&](int64_t begin, int64_t end) { work_on_rows_of(work, begin, end); });
    for (int64_t r = 0; r < heads * rows; ++r) { // in one order, whatever the threads did
      loss_ += values_[r];
      count_ += work.counts[r];
    }
    if (work.with_grad) {
      const at::Tensor grad_q = grad_q_.view({all_heads_, queries_, q_s_.size(3)});
      multiply(grad_q.narrow(0, work.first_head, heads).narrow(1, row, rows), s, k_s);
      multiply(tile_grad_k_.narrow(0, 0, heads), s.transpose(1, 2), q_s, /*add=*/row > 0);
    }
  }

  // Query heads that share a key head add up, in the order of the heads.
  void add_grad_k(int64_t head, int64_t heads) {
    const int64_t size = keys_ * k_s_.size(3);
    const T* from = tile_grad_k_.const_data_ptr<T>();
    T* to = grad_k_.mutable_data_ptr<T>();
    at::parallel_for(0, size, grain(heads), [&](int64_t begin, int64_t end) {
      for (int64_t g = 0; g < heads; ++g) {
        const T* source = from + g * size;
        T* target = to + (of_s_.batch(head + g) * k_s_.size(1) + of_s_.head(head + g)) * size;
        for (int64_t d = begin; d < end; ++d) target[d] += source[d];
      }
    });
  }

  const at::Tensor &q_s_, &k_s_, &q_t_, &k_t_;
  const int64_t heads_, all_heads_, queries_, keys_; // H, B * H, L, M
  const HeadOf of_s_, of_t_;
  const at::TensorOptions options_;
  int64_t chunk_heads_ = 1, chunk_rows_ = 1; // G, R
  at::Tensor map_s_, map_t_;                 // [G, R, M]
  at::Tensor tile_q_s_, tile_q_t_, tile_k_s_, tile_k_t_, tile_grad_k_, counts_;
  std::vector<double> values_;
  at::Tensor grad_q_, grad_k_;
  double loss_ = 0;
  int64_t count_ = 0;
};

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_s, const at::Tensor& k_s) {
  TORCH_CHECK(
      q.dim() == 4 && k.dim() == 4, "attention_mse: queries and keys must be 4-d, got ", q.sizes(), " and ", k.sizes());
  TORCH_CHECK(
      q.size(0) == q_s.size(0) && q.size(1) == q_s.size(1) && q.size(2) == q_s.size(2) && k.size(0) == q.size(0) &&
          k.size(2) == k_s.size(2) && k.size(3) == q.size(3) &&
          (q.size(1) == 0 || (k.size(1) > 0 && q.size(1) % k.size(1) == 0)),
      "attention_mse: shapes do not fit: queries ", q.sizes(), ", keys ", k.sizes(), ", student's queries ",
      q_s.sizes());
}

Visibility visibility(
    const at::Tensor& q,
    const at::Tensor& k,
    const std::optional<at::Tensor>& attn_mask,
    const std::optional<at::Tensor>& query_mask,
    bool is_causal) {
  Visibility result;
  result.causal = is_causal;
  if (attn_mask.has_value()) {
    TORCH_CHECK(
        attn_mask->scalar_type() == at::kBool && attn_mask->dim() == 4,
        "attention_mse: attn_mask must be bool and 4-d");
    const at::Tensor mask = attn_mask->expand({q.size(0), q.size(1), q.size(2), k.size(2)});
    result.mask = mask.const_data_ptr<bool>();
    std::copy_n(mask.strides().begin(), 4, result.strides);
  }
  if (query_mask.has_value()) {
    TORCH_CHECK(
        query_mask->scalar_type() == at::kBool && query_mask->dim() == 2 && query_mask->size(0) == q.size(0) &&
            query_mask->size(1) == q.size(2),
        "attention_mse: query_mask must be bool [B, L]");
    result.counted = query_mask->const_data_ptr<bool>();
    std::copy_n(query_mask->strides().begin(), 2, result.counted_strides);
  }
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_mse_cpu(
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
    bool with_grad) {
  const PlainArithmetic plain;
  check(q_s, k_s, q_s, k_s);
  check(q_t, k_t, q_s, k_s);
  TORCH_CHECK(
      distance == "mse" || distance == "kl", "attention_mse: distance must be 'mse' or 'kl', got '", distance, "'");
  const Visibility visible = visibility(q_s, k_s, attn_mask, query_mask, is_causal);
  if (accumulation_type(q_s) == at::kDouble) {
    return AttentionMse<double>(q_s, k_s, q_t, k_t).run(scale_s, scale_t, visible, distance == "kl", with_grad);
  }
  return AttentionMse<float>(q_s, k_s, q_t, k_t)
      .run(static_cast<float>(scale_s), static_cast<float>(scale_t), visible, distance == "kl", with_grad);
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CPU, m) {
  m.impl("attention_mse", &attention_mse_cpu);
}

} // namespace vlkd
