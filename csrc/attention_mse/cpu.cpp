// attention_mse on the CPU: the distance between two attention maps and its gradient, one chunk of the maps at a time.
//
// Legend: B batch, H heads, L queries, M keys, D head width; a chunk holds G heads and R of their query rows.
// A chunk is either whole maps of several heads (R = L) or some rows of one head (G = 1). ATen multiplies the matrices;
// the loop over a row between the two products is ours. With p, t the two softmaxes of a row, m its visible keys:
//   mse  value = (1/m) sum_j (p_j - t_j)^2,         g_j = (2/m) p_j (d_j - sum_k p_k d_k),  d = p - t
//   kl   value = sum_j t_j (log t_j - log p_j),     g_j = p_j - t_j
//   dQ = scale_s g K,  dK = scale_s g^T Q.

#include "../common/simd.h"
#include "../common/tensors.h"

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

// Which of the heads that a tensor holds serves query head `index` of the flattened [B * H].
struct HeadOf {
  int64_t heads, groups; // query heads in a batch; query heads that share a key head
  int64_t batch(int64_t index) const { return index / heads; }
  int64_t head(int64_t index) const { return index % heads / groups; }
};

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

// Who may see whom, read through strides: a mask that broadcasts is never written out.
struct Visibility {
  const bool* mask = nullptr; // [B, H, L, M] by strides
  int64_t strides[4] = {0, 0, 0, 0};
  const bool* counted = nullptr; // [B, L] by strides
  int64_t counted_strides[2] = {0, 0};
  bool causal = false;

  bool row_counts(int64_t b, int64_t i) const {
    return counted == nullptr || counted[b * counted_strides[0] + i * counted_strides[1]];
  }

  // The row's mask with unit stride (in `scratch` if need be), or null if the row sees every key.
  const bool* row_mask(int64_t b, int64_t h, int64_t i, int64_t keys, bool* scratch) const {
    if (mask == nullptr) return nullptr;
    const bool* row = mask + b * strides[0] + h * strides[1] + i * strides[2];
    if (strides[3] == 1) return row;
    for (int64_t j = 0; j < keys; ++j) scratch[j] = row[j * strides[3]];
    return scratch;
  }
};

template <typename T>
struct Largest {
  T s, t;          // the largest logits of the row
  int64_t visible; // how many keys it sees
};

// Scales the logits of a row in place and puts -infinity where the mask hides.
template <typename T>
VLKD_INLINE Largest<T> scale_and_hide(
    T* __restrict s, T* __restrict t, T scale_s, T scale_t, const bool* mask, int64_t keys) {
  T max_s = kMinusInfinity<T>, max_t = kMinusInfinity<T>;
  int64_t visible = keys;
  if (mask == nullptr) {
#pragma omp simd reduction(max : max_s, max_t)
    for (int64_t j = 0; j < keys; ++j) {
      s[j] *= scale_s;
      t[j] *= scale_t;
      max_s = s[j] > max_s ? s[j] : max_s;
      max_t = t[j] > max_t ? t[j] : max_t;
    }
  } else {
    int32_t seen = 0;
#pragma omp simd reduction(max : max_s, max_t) reduction(+ : seen)
    for (int64_t j = 0; j < keys; ++j) {
      s[j] = mask[j] ? s[j] * scale_s : kMinusInfinity<T>;
      t[j] = mask[j] ? t[j] * scale_t : kMinusInfinity<T>;
      seen += mask[j];
      max_s = s[j] > max_s ? s[j] : max_s;
      max_t = t[j] > max_t ? t[j] : max_t;
    }
    visible = seen;
  }
  return {max_s, max_t, visible};
}

// s and t hold scaled logits; leaves the gradient of the unscaled logits, times `factor`, in s. Returns the row's value.
template <typename T>
VLKD_INLINE T mse_row(T* __restrict s, T* __restrict t, Largest<T> largest, int64_t keys, T factor, bool with_grad) {
  T sum_s = 0, sum_t = 0;
#pragma omp simd reduction(+ : sum_s, sum_t)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] = exp(s[j] - largest.s);
    t[j] = exp(t[j] - largest.t);
    sum_s += s[j];
    sum_t += t[j];
  }
  const T inverse_s = T(1) / sum_s, inverse_t = T(1) / sum_t;
  T squares = 0, delta = 0;
#pragma omp simd reduction(+ : squares, delta)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] *= inverse_s;
    t[j] = s[j] - t[j] * inverse_t; // d: the direct difference, for sum p^2 - 2 sum p t + sum t^2 would cancel
    squares += t[j] * t[j];
    delta += s[j] * t[j];
  }
  const T per_key = T(1) / static_cast<T>(largest.visible);
  if (with_grad) {
    const T scale = 2 * per_key * factor;
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) s[j] = scale * s[j] * (t[j] - delta);
  }
  return squares * per_key;
}

template <typename T>
VLKD_INLINE T kl_row(T* __restrict s, const T* __restrict t, Largest<T> largest, int64_t keys, T factor) {
  T sum_s = 0, sum_t = 0;
#pragma omp simd reduction(+ : sum_s, sum_t)
  for (int64_t j = 0; j < keys; ++j) {
    sum_s += exp(s[j] - largest.s);
    sum_t += exp(t[j] - largest.t);
  }
  const T lse_s = largest.s + std::log(sum_s), lse_t = largest.t + std::log(sum_t);
  T value = 0;
#pragma omp simd reduction(+ : value)
  for (int64_t j = 0; j < keys; ++j) {
    const T log_p = s[j] - lse_s, log_t = t[j] - lse_t;
    const T p = exp(log_p), q = exp(log_t);
    // t (log t - log p) + p - t summed over the row is the divergence, and no term of it is negative: with x the log
    // ratio it is t (e^x - 1 - x), from the series where x is small.
    const T x = s[j] == kMinusInfinity<T> ? T(0) : log_p - log_t;
    const bool small = x > T(-0.5) && x < T(0.5);
    value += small ? q * expm1_minus_x(small ? x : T(0)) : p - q - q * x;
    s[j] = factor * (p - q);
  }
  return value;
}

template <typename T>
struct Rows {
  T *s, *t;       // [G, R, M]
  double* values; // [G, R]
  bool* counts;   // [G, R]
  HeadOf of;
  int64_t first_head, first_row, rows, keys; // rows: R
  T scale_s, scale_t;
  Visibility visibility;
  bool kl, with_grad;
};

template <typename T>
VLKD_INLINE void work_on_rows(const Rows<T>& work, int64_t begin, int64_t end) {
  std::vector<char> scratch(work.visibility.mask == nullptr ? 0 : work.keys);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t index = work.first_head + r / work.rows, i = work.first_row + r % work.rows;
    const int64_t b = work.of.batch(index), h = index % work.of.heads;
    const int64_t keys = work.visibility.causal ? std::min(work.keys, i + 1) : work.keys;
    T *s = work.s + r * work.keys, *t = work.t + r * work.keys;
    work.values[r] = 0;
    work.counts[r] = false;
    if (work.visibility.row_counts(b, i)) {
      const bool* mask = work.visibility.row_mask(b, h, i, keys, reinterpret_cast<bool*>(scratch.data()));
      const Largest<T> largest = scale_and_hide(s, t, work.scale_s, work.scale_t, mask, keys);
      if (largest.visible > 0) {
        work.counts[r] = true;
        work.values[r] = work.kl ? kl_row(s, t, largest, keys, work.scale_s)
                                 : mse_row(s, t, largest, keys, work.scale_s, work.with_grad);
      }
    }
    if (work.with_grad) std::fill(work.counts[r] ? s + keys : s, s + work.keys, T(0));
  }
}

VLKD_CLONES void work_on_rows_of(const Rows<float>& work, int64_t begin, int64_t end) {
  work_on_rows(work, begin, end);
}

VLKD_CLONES void work_on_rows_of(const Rows<double>& work, int64_t begin, int64_t end) {
  work_on_rows(work, begin, end);
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
