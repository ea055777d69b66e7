// token_nce on the CPU: the noise-contrastive loss of tokens against a queue, and its gradient, one block of the
// similarities at a time.
//
// Legend: N counted tokens, E embedding width, K negatives, C a block of tokens, J a block of negatives.
// With s the student's row, t the teacher's, q_k the negatives (all of length 1 where `normalize` says so), tau the
// temperature, w_k = exp((s.q_k - m)/tau), w_0 = exp((s.t - m)/tau) for the running maximum m, W = sum_k w_k:
//   loss = log(1 + W / w_0),  dL/ds = (sum_k w_k q_k - W t) / ((w_0 + W) tau),
//   dL/dtau = -sum_k w_k (s.q_k - s.t) / ((w_0 + W) tau^2),
// which is attention with the queue as keys and as values. No negative gives W = 0, so loss and gradient are exactly 0.

#include "../common/instruction_set.h"
#include "../common/scratch.h"
#include "../common/tensors.h"
#include "arguments.h"
#include "sweep.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace vlkd {
namespace {

// The steps' code for one instruction set, and the type of the rows that it multiplies.
template <typename T>
struct Code {
  void (*work)(Step, const Job<T>&, int64_t begin, int64_t end, T* memory);
  at::ScalarType rows;
};

template <typename T>
void work_baseline(Step step, const Job<T>& job, int64_t begin, int64_t end, T* memory) {
  work_with<T, Baseline>(step, job, begin, end, memory);
}

#ifdef VLKD_AVX512
template <typename T>
VLKD_AVX2 void work_avx2(Step step, const Job<T>& job, int64_t begin, int64_t end, T* memory) {
  work_with<T, Avx2>(step, job, begin, end, memory);
}

template <typename T>
VLKD_AVX512 void work_avx512(Step step, const Job<T>& job, int64_t begin, int64_t end, T* memory) {
  work_with<T, Avx512>(step, job, begin, end, memory);
}
#endif

#ifdef VLKD_AVX512_BF16
VLKD_AVX512 void work_avx512_bf16(Step step, const Job<float>& job, int64_t begin, int64_t end, float* memory) {
  work_with<Bf16Pair, Avx512Bf16>(step, job, begin, end, memory);
}
#endif

#ifdef VLKD_AMX
VLKD_AVX512 void work_amx(Step step, const Job<float>& job, int64_t begin, int64_t end, float* memory) {
  if (step != Step::kCompare) return work_avx512_bf16(step, job, begin, end, memory);
  const WholeTiles tiles;
  compare_with<Bf16Pair, Amx>(job, begin, end, memory);
}
#endif

// `paired`: all rows are bfloat16, and of an even width.
template <typename T>
Code<T> code([[maybe_unused]] bool paired) {
  constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;
  [[maybe_unused]] const InstructionSet best = instruction_set();
#ifdef VLKD_AMX
  if constexpr (std::is_same_v<T, float>) {
    if (paired && best >= InstructionSet::kAmx) return {work_amx, at::kBFloat16};
  }
#endif
#ifdef VLKD_AVX512_BF16
  if constexpr (std::is_same_v<T, float>) {
    if (paired && best >= InstructionSet::kAvx512Bf16) return {work_avx512_bf16, at::kBFloat16};
  }
#endif
#ifdef VLKD_AVX512
  if (best >= InstructionSet::kAvx512) return {work_avx512<T>, kType};
  if (best >= InstructionSet::kAvx2) return {work_avx2<T>, kType};
#endif
  return {work_baseline<T>, kType};
}

template <typename T>
class TokenNce {
 public:
  // h_s, h_t [N, E] contiguous, of the code's type, the counted tokens alone; token_ids [N] or undefined.
  TokenNce(
      Code<T> code, at::Tensor h_s, at::Tensor h_t, at::Tensor token_ids, double temperature, bool normalize, bool with_grad)
      : code_(code),
        h_s_(std::move(h_s)),
        h_t_(std::move(h_t)),
        token_ids_(std::move(token_ids)),
        temperature_(temperature),
        options_(h_s_.options().dtype(c10::CppTypeToScalarType<T>::value)),
        states_(h_s_.size(0)) {
    Tokens<T>& tokens = job_.tokens;
    tokens.count = h_s_.size(0);
    tokens.width = h_s_.size(1);
    inverse_norms_ = at::empty({2, tokens.count}, options_);
    tokens.h_s = h_s_.const_data_ptr();
    tokens.h_t = h_t_.const_data_ptr();
    tokens.ids = token_ids_.defined() ? token_ids_.const_data_ptr<int64_t>() : nullptr;
    tokens.inverse_temperature = static_cast<T>(1 / temperature);
    tokens.normalize = normalize;
    tokens.inverse_s = inverse_norms_.template mutable_data_ptr<T>();
    tokens.inverse_t = tokens.inverse_s + tokens.count;
    tokens.states = states_.data();
    if (with_grad) {
      gradient_ = at::zeros({padded(tokens.count), padded(tokens.width)}, options_);
      tokens.gradient = gradient_.template mutable_data_ptr<T>();
    }
    const int64_t threads = at::get_num_threads(), share = padded((tokens.count + threads - 1) / threads);
    job_.chunk = std::clamp(share, kPadding, kChunk);
    parallel(Step::kBegin, tokens.count, tokens.width);
  }

  // Compares every token with the queue's rows, [K, E] of any type, ids [K] or undefined.
  void against_queue(const at::Tensor& rows, const at::Tensor& ids, bool normalize) {
    for (int64_t first = 0; first < rows.size(0); first += kCandidates) {
      const int64_t count = std::min(kCandidates, rows.size(0) - first);
      const at::Tensor block = rows.narrow(0, first, count).to(code_.rows).contiguous();
      compare(block, ids.defined() ? ids.const_data_ptr<int64_t>() + first : nullptr, -1, normalize);
    }
  }

  // Compares every token with the teacher's rows of the others.
  void against_each_other() {
    for (int64_t first = 0; first < job_.tokens.count; first += kCandidates) {
      const int64_t count = std::min(kCandidates, job_.tokens.count - first);
      const int64_t* ids = job_.tokens.ids == nullptr ? nullptr : job_.tokens.ids + first;
      compare(h_t_.narrow(0, first, count), ids, first, job_.tokens.normalize);
    }
  }

  struct Totals {
    double loss = 0, grad_temperature = 0;
  };

  // The sums over the tokens, in one order, whatever the threads did; the gradient becomes that of the loss sum, for h_s.
  // Writes the tokens' values, [4, N].
  Totals finish(const at::Tensor& values) {
    if (gradient_.defined()) parallel(Step::kFinish, job_.tokens.count, job_.tokens.width);
    T* to = values.mutable_data_ptr<T>();
    const int64_t count = job_.tokens.count;
    Totals sum;
    for (const TokenState& state : states_) {
      const double distance = (state.maximum - state.positive) / temperature_; // of the positive's logit from the largest
      const double own = std::exp(-distance), total = own + state.weights;     // own: w_0
      // log1p while the positive dominates, so that a small loss keeps its digits; the logs where w_0 may vanish
      const double loss = state.weights <= own ? std::log1p(state.weights / own) : distance + std::log(total);
      sum.loss += loss;
      sum.grad_temperature -= state.differences / (total * temperature_ * temperature_);
      to[0] = static_cast<T>(loss);
      to[count] = static_cast<T>(state.positive);
      to[2 * count] = static_cast<T>(state.similarities / static_cast<double>(std::max<int64_t>(1, state.negatives)));
      to[3 * count] = static_cast<T>((state.top ? 1 : 0) + 0 * loss); // NaN if the loss is
      ++to;
    }
    return sum;
  }

  at::Tensor gradient() const {
    return gradient_.narrow(0, 0, job_.tokens.count).narrow(1, 0, job_.tokens.width).contiguous();
  }

 private:
  // Runs a step over [0, count), each of which is worth `work` elements, without memory of its own.
  void parallel(Step step, int64_t count, int64_t work) {
    at::parallel_for(
        0, count, grain(work), [&](int64_t begin, int64_t end) { code_.work(step, job_, begin, end, nullptr); });
  }

  void compare(const at::Tensor& rows, const int64_t* ids, int64_t first_token, bool normalize) {
    const Tokens<T>& tokens = job_.tokens;
    if (tokens.count == 0) return;
    const int64_t count = rows.size(0), row = padded(count);
    const int64_t across = row * tokens.width, down = tokens.gradient == nullptr ? 0 : count * padded(tokens.width);
    const int64_t chunks = (tokens.count + job_.chunk - 1) / job_.chunk, memory = job_.chunk * (dots_row<T>(count) + padded(tokens.width));
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), chunks), packs = row + across + down;
    const int64_t bytes = (packs + threads * memory) * static_cast<int64_t>(sizeof(T));
    if (!scratch_.has_value() || scratch_->bytes() < bytes) scratch_.emplace(bytes);
    T *const packed = scratch_->template data<T>(), *const workspace = packed + packs;
    job_.candidates = {rows.const_data_ptr(), ids, count, first_token, normalize, packed, packed + row, packed + row + across};
    const int64_t all_strips = strips(count) + (tokens.gradient == nullptr ? 0 : strips(tokens.width));
    parallel(Step::kPack, all_strips, kStrip * tokens.width);

    at::parallel_for(0, chunks, grain(job_.chunk * count * tokens.width), [&](int64_t begin, int64_t end) {
      code_.work(Step::kCompare, job_, begin, end, workspace + at::get_thread_num() * memory);
    });
  }

  const Code<T> code_;
  const at::Tensor h_s_, h_t_, token_ids_;
  const double temperature_;
  const at::TensorOptions options_; // of sums
  std::vector<TokenState> states_;
  Job<T> job_{};
  at::Tensor inverse_norms_;        // [2, N]
  std::optional<Scratch> scratch_;  // of a block of candidates, packed, and of the threads
  at::Tensor gradient_;             // [padded(N), padded(E)], or undefined
};

struct Arguments {
  const at::Tensor &h_s, &h_t, &negatives;
  const std::optional<at::Tensor>&fill, &negative_ids, &token_mask, &token_ids;
  double temperature;
  bool normalize, normalize_negatives, in_batch, with_grad;
};

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
Outputs run(const Arguments& a) {
  const auto options = a.h_s.options().dtype(accumulation_type(a.h_s));
  // Tokens that do not count are left out at once: no work, and no NaN of theirs reaches a sum.
  std::optional<at::Tensor> kept;
  if (a.token_mask.has_value()) kept = a.token_mask->nonzero().squeeze(1);
  const auto counted = [&](const at::Tensor& x) { return kept.has_value() ? x.index_select(0, *kept) : x; };
  const auto is_bf16 = [](const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; };
  const Code<T> code =
      vlkd::code<T>(is_bf16(a.h_s) && is_bf16(a.h_t) && is_bf16(a.negatives) && a.h_s.size(1) % 2 == 0);
  const auto rows = [&](const at::Tensor& x) { return counted(x).to(code.rows).contiguous(); };
  const int64_t all = a.negatives.size(0);
  const int64_t filled = a.fill.has_value() ? std::clamp<int64_t>(a.fill->item<int64_t>(), 0, all) : all;

  TokenNce<T> nce(
      code, rows(a.h_s), rows(a.h_t), a.token_ids.has_value() ? counted(*a.token_ids).contiguous() : at::Tensor(),
      a.temperature, a.normalize, a.with_grad);
  nce.against_queue(
      a.negatives.narrow(0, 0, filled), a.negative_ids.has_value() ? a.negative_ids->contiguous() : at::Tensor(),
      a.normalize_negatives);
  if (a.in_batch) nce.against_each_other();
  at::Tensor values = at::empty({4, kept.has_value() ? kept->size(0) : a.h_s.size(0)}, options);
  const auto totals = nce.finish(values);

  at::Tensor grad_h = a.with_grad ? nce.gradient() : at::empty({0}, options);
  if (kept.has_value()) values = at::zeros({4, a.h_s.size(0)}, options).index_copy_(1, *kept, values);
  if (a.with_grad && kept.has_value()) grad_h = at::zeros(a.h_s.sizes(), options).index_copy_(0, *kept, grad_h);
  const int64_t count = kept.has_value() ? kept->size(0) : a.h_s.size(0);
  return {
      at::scalar_tensor(totals.loss, options), at::scalar_tensor(static_cast<double>(count), options), grad_h,
      at::scalar_tensor(totals.grad_temperature, options), values};
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
  check_arguments(h_s, h_t, negatives, fill, negative_ids, token_mask, token_ids, temperature, temperature_tensor);
  double tau = temperature.has_value() ? *temperature : temperature_tensor->item<double>();
  if (!(tau > 0 && std::isfinite(tau))) tau = std::numeric_limits<double>::quiet_NaN(); // has no meaning, and all results say so
  const Arguments arguments{h_s, h_t,       negatives,           fill,     negative_ids, token_mask, token_ids,
                            tau, normalize, normalize_negatives, in_batch, with_grad};
  return accumulation_type(h_s) == at::kDouble ? run<double>(arguments) : run<float>(arguments);
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CPU, m) {
  m.impl("token_nce", &token_nce_cpu);
}

} // namespace vlkd
