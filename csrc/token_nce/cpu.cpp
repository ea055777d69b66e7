// token_nce on the CPU: the noise-contrastive loss of tokens against a queue, and its gradient, one block of the
// similarities at a time.
//
// Legend: N counted tokens, E embedding width, K negatives, C a block of tokens, J a block of negatives.
// With s the student's row, t the teacher's, q_k the negatives (all of length 1 where `normalize` says so), tau the
// temperature, w_k = exp((s.q_k - m)/tau), w_0 = exp((s.t - m)/tau) for the running maximum m, W = sum_k w_k:
//   loss = log(1 + W / w_0),  dL/ds = (sum_k w_k q_k - W t) / ((w_0 + W) tau),
//   dL/dtau = -sum_k w_k (s.q_k - s.t) / ((w_0 + W) tau^2),
// which is attention with the queue as keys and as values. No negative gives W = 0, so loss and gradient are exactly 0.

#include "../common/tensors.h"
#include "rows.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace vlkd {
namespace {

constexpr int64_t kNegatives = 1024;      // J
constexpr int64_t kTokensPerThread = 128; // C for one thread: 128 x 1024 float32 similarities take 512 KiB
constexpr int64_t kMostTokens = 2048;     // 8 MiB
constexpr double kEps = 1e-12;            // the smallest norm that a row is divided by

// 1 / max(norm, eps) of every row of x [rows, E], or ones.
template <typename T>
at::Tensor inverse_norms(const at::Tensor& x, bool normalize) {
  at::Tensor result = at::ones({x.size(0)}, x.options());
  if (normalize) {
    const T* rows = x.const_data_ptr<T>();
    T* out = result.mutable_data_ptr<T>();
    const int64_t width = x.size(1);
    at::parallel_for(0, x.size(0), grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* row = rows + i * width;
        out[i] = T(1) / std::max(std::sqrt(dot(row, row, width)), static_cast<T>(kEps));
      }
    });
  }
  return result;
}

template <typename T>
class TokenNce {
 public:
  // h_s, h_t [N, E] contiguous, of type T, the counted tokens alone; token_ids [N] or undefined.
  TokenNce(at::Tensor h_s, at::Tensor h_t, at::Tensor token_ids, double temperature, bool normalize, bool with_grad)
      : h_s_(std::move(h_s)),
        h_t_(std::move(h_t)),
        token_ids_(std::move(token_ids)),
        temperature_(temperature),
        normalize_(normalize),
        tokens_(h_s_.size(0)),
        width_(h_s_.size(1)),
        inverse_s_(inverse_norms<T>(h_s_, normalize)),
        inverse_t_(inverse_norms<T>(h_t_, normalize)),
        states_(tokens_) {
    if (with_grad) gradient_ = at::zeros_like(h_s_);
    const T *s = h_s_.template const_data_ptr<T>(), *t = h_t_.template const_data_ptr<T>();
    const T *inverse_s = inverse_s_.template const_data_ptr<T>(), *inverse_t = inverse_t_.template const_data_ptr<T>();
    at::parallel_for(0, tokens_, grain(width_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        states_[i].positive = dot(s + i * width_, t + i * width_, width_) * inverse_s[i] * inverse_t[i];
        states_[i].maximum = states_[i].positive / temperature_;
      }
    });
  }

  // Compares every token with the queue's rows, [K, E] of any type, ids [K] or undefined.
  void against_queue(const at::Tensor& rows, const at::Tensor& ids, bool normalize) {
    for (int64_t first = 0; first < rows.size(0); first += kNegatives) {
      const int64_t count = std::min(kNegatives, rows.size(0) - first);
      const at::Tensor block = rows.narrow(0, first, count).to(h_s_.scalar_type()).contiguous();
      const at::Tensor inverse = inverse_norms<T>(block, normalize);
      sweep(
          block, {inverse.template const_data_ptr<T>(), ids.defined() ? ids.const_data_ptr<int64_t>() + first : nullptr,
                  count, -1});
    }
  }

  // Compares every token with the teacher's rows of the others.
  void against_each_other() {
    for (int64_t first = 0; first < tokens_; first += kNegatives) {
      const int64_t count = std::min(kNegatives, tokens_ - first);
      const T* inverse = inverse_t_.template const_data_ptr<T>() + first;
      const int64_t* ids = token_ids_.defined() ? token_ids_.const_data_ptr<int64_t>() + first : nullptr;
      sweep(h_t_.narrow(0, first, count), {inverse, ids, count, first});
    }
  }

  struct Totals {
    double loss = 0, grad_temperature = 0, positive = 0, negative = 0, top = 0;
  };

  // The sums over the tokens; the gradient becomes that of the loss sum, for h_s.
  Totals finish() {
    std::vector<Totals> each(tokens_);
    at::parallel_for(0, tokens_, grain(width_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) each[i] = finish_token(i);
    });
    Totals sum;
    for (const Totals& one : each) { // in one order, whatever the threads did
      sum.loss += one.loss;
      sum.grad_temperature += one.grad_temperature;
      sum.positive += one.positive;
      sum.negative += one.negative;
      sum.top += one.top;
    }
    return sum;
  }

  const at::Tensor& gradient() const { return gradient_; }

 private:
  void sweep(const at::Tensor& rows, Candidates<T> candidates) {
    const int64_t most = std::min({kMostTokens, kTokensPerThread * at::get_num_threads(), tokens_});
    const at::Tensor similarities = at::empty({most, candidates.count}, h_s_.options());
    for (int64_t first = 0; first < tokens_; first += most) {
      const int64_t count = std::min(most, tokens_ - first);
      at::Tensor part = similarities.narrow(0, 0, count);
      at::mm_out(part, h_s_.narrow(0, first, count), rows.t());
      Block<T> block{};
      block.similarities = part.template mutable_data_ptr<T>();
      block.inverse_norms = inverse_s_.template const_data_ptr<T>() + first;
      block.ids = token_ids_.defined() ? token_ids_.const_data_ptr<int64_t>() + first : nullptr;
      block.states = states_.data() + first;
      block.first_token = first;
      block.width = width_;
      block.inverse_temperature = 1 / temperature_;
      block.candidates = candidates;
      at::Tensor gradient;
      if (gradient_.defined()) {
        gradient = gradient_.narrow(0, first, count);
        block.gradient = gradient.template mutable_data_ptr<T>();
      }
      at::parallel_for(
          0, count, grain(candidates.count), [&](int64_t begin, int64_t end) { weigh_rows(block, begin, end); });
      if (gradient.defined()) at::addmm_out(gradient, gradient, part, rows);
    }
  }

  Totals finish_token(int64_t i) {
    const TokenState& state = states_[i];
    const double logit = state.positive / temperature_;
    const double own = std::exp(logit - state.maximum); // w_0
    const double total = own + state.weights;
    Totals result;
    // log1p while the positive dominates, so that a small loss keeps its digits; the logs where w_0 may vanish
    result.loss = state.weights <= own ? std::log1p(state.weights / own) : state.maximum - logit + std::log(total);
    result.grad_temperature = -state.differences / (total * temperature_ * temperature_);
    result.positive = state.positive;
    result.negative = state.negatives > 0 ? state.similarities / static_cast<double>(state.negatives) : 0;
    result.top = state.top ? 1 : 0;
    if (gradient_.defined()) finish_gradient(i, state.weights, total);
    return result;
  }

  void finish_gradient(int64_t i, double weights, double total) {
    T* __restrict g = gradient_.template mutable_data_ptr<T>() + i * width_;
    const T *s = h_s_.template const_data_ptr<T>() + i * width_, *t = h_t_.template const_data_ptr<T>() + i * width_;
    const T inverse_s = inverse_s_.template const_data_ptr<T>()[i],
            inverse_t = inverse_t_.template const_data_ptr<T>()[i];
    const T scale = static_cast<T>(1 / (total * temperature_)), pull = static_cast<T>(weights) * inverse_t;
#pragma omp simd
    for (int64_t e = 0; e < width_; ++e) g[e] = (g[e] - pull * t[e]) * scale;
    if (!normalize_) return;
    // through s = h / max(|h|, eps): the part along s vanishes, unless the norm was clamped
    const bool clamped = inverse_s >= static_cast<T>(1 / kEps);
    const T along = clamped ? T(0) : dot(g, s, width_) * inverse_s * inverse_s;
#pragma omp simd
    for (int64_t e = 0; e < width_; ++e) g[e] = (g[e] - along * s[e]) * inverse_s;
  }

  const at::Tensor h_s_, h_t_, token_ids_;
  const double temperature_;
  const bool normalize_;
  const int64_t tokens_, width_;
  const at::Tensor inverse_s_, inverse_t_;
  std::vector<TokenState> states_;
  at::Tensor gradient_; // [N, E], or undefined
};

struct Arguments {
  const at::Tensor &h_s, &h_t, &negatives;
  const std::optional<at::Tensor>&fill, &negative_ids, &token_mask, &token_ids;
  double temperature;
  bool normalize, normalize_negatives, in_batch, with_grad;
};

void check(const Arguments& a) {
  TORCH_CHECK(
      a.h_s.dim() == 2 && a.h_s.sizes() == a.h_t.sizes() && a.negatives.dim() == 2 &&
          a.negatives.size(1) == a.h_s.size(1),
      "token_nce: expected h_s and h_t [N, E] and negatives [K, E], got ", a.h_s.sizes(), ", ", a.h_t.sizes(), " and ",
      a.negatives.sizes());
  const auto holds = [](const std::optional<at::Tensor>& x, at::ScalarType type, int64_t size) {
    return !x.has_value() || (x->scalar_type() == type && x->dim() == 1 && x->size(0) == size);
  };
  TORCH_CHECK(
      holds(a.token_mask, at::kBool, a.h_s.size(0)) && holds(a.token_ids, at::kLong, a.h_s.size(0)) &&
          holds(a.negative_ids, at::kLong, a.negatives.size(0)),
      "token_nce: expected token_mask bool [N], token_ids int64 [N] and negative_ids int64 [K]");
  TORCH_CHECK(
      !a.fill.has_value() || (a.fill->scalar_type() == at::kLong && a.fill->numel() == 1),
      "token_nce: fill must be one int64");
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
Outputs run(const Arguments& a) {
  const auto options = a.h_s.options().dtype(accumulation_type(a.h_s));
  // Tokens that do not count are left out at once: no work, and no NaN of theirs reaches a sum.
  std::optional<at::Tensor> kept;
  if (a.token_mask.has_value()) kept = a.token_mask->nonzero().squeeze(1);
  const auto counted = [&](const at::Tensor& x) { return kept.has_value() ? x.index_select(0, *kept) : x; };
  const auto rows = [&](const at::Tensor& x) { return counted(x).to(options.dtype()).contiguous(); };
  const int64_t filled = a.fill.has_value() ? a.fill->item<int64_t>() : a.negatives.size(0);
  TORCH_CHECK(
      0 <= filled && filled <= a.negatives.size(0), "token_nce: fill must lie in 0..", a.negatives.size(0), ", got ",
      filled);

  TokenNce<T> nce(
      rows(a.h_s), rows(a.h_t), a.token_ids.has_value() ? counted(*a.token_ids).contiguous() : at::Tensor(),
      a.temperature, a.normalize, a.with_grad);
  nce.against_queue(
      a.negatives.narrow(0, 0, filled), a.negative_ids.has_value() ? a.negative_ids->contiguous() : at::Tensor(),
      a.normalize_negatives);
  if (a.in_batch) nce.against_each_other();
  const auto totals = nce.finish();

  at::Tensor grad_h = a.with_grad ? nce.gradient() : at::empty({0}, options);
  if (a.with_grad && kept.has_value()) {
    grad_h = at::zeros(a.h_s.sizes(), options).index_copy_(0, *kept, nce.gradient());
  }
  at::Tensor stats = at::empty({3}, options.dtype(at::kFloat));
  float* sums = stats.mutable_data_ptr<float>();
  sums[0] = static_cast<float>(totals.positive);
  sums[1] = static_cast<float>(totals.negative);
  sums[2] = static_cast<float>(totals.top);
  const int64_t count = kept.has_value() ? kept->size(0) : a.h_s.size(0);
  return {
      at::scalar_tensor(totals.loss, options), at::scalar_tensor(static_cast<double>(count), options), grad_h,
      at::scalar_tensor(totals.grad_temperature, options), stats};
}

Outputs token_nce_cpu(
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
  const PlainArithmetic plain;
  TORCH_CHECK(
      temperature.has_value() != temperature_tensor.has_value(),
      "token_nce: give temperature or temperature_tensor, one of the two");
  const double tau = temperature.has_value() ? *temperature : temperature_tensor->item<double>();
  const Arguments arguments{h_s, h_t,       negatives,           fill,     negative_ids, token_mask, token_ids,
                            tau, normalize, normalize_negatives, in_batch, with_grad};
  check(arguments);
  return accumulation_type(h_s) == at::kDouble ? run<double>(arguments) : run<float>(arguments);
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CPU, m) {
  m.impl("token_nce", &token_nce_cpu);
}

} // namespace vlkd
