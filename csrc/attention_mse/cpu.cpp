// attention_mse on the CPU: the distance between two attention maps and its gradient, without either map in memory.
//
// Legend: B batch, H heads, L queries, M keys, D head width.
// The work is cut into slabs, each some tiles of query rows against one key head of the student (slab.h); how, depends on
// the shapes alone, so that the bits of a result do not depend on the number of threads. A slab multiplies tiles in registers
// (common/gemm.h) and turns the two maps' rows into the loss and its gradient while they are in the cache (rows.h).

#include "../common/instruction_set.h"
#include "../common/scratch.h"
#include "../common/tensors.h"
#include "arguments.h"
#include "slab.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

namespace vlkd {
namespace {

constexpr int64_t kSlabs = 32;              // as many as keep some dozen threads busy
constexpr int64_t kWorthASlab = 1 << 16;    // entries of a map
constexpr int64_t kWorkOfAnEntry = 8;       // as `grain` counts: some hundred multiply-adds and two exponentials
constexpr int64_t kWorkOfASlab = 1 << 12;   // what even one of a single entry costs
constexpr int64_t kLargestPartial = 1 << 21; // elements of dK before the slabs of a head are added up: 8 MiB in float32

Operand operand(const at::Tensor& x) {
  return {
      x.const_data_ptr(), x.scalar_type(), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}, x.size(3)};
}

// The code of some slabs for one instruction set, and the memory it needs.
template <typename T>
struct Code {
  void (*work)(const Problem<T>&, Slab<T>* begin, Slab<T>* end, T* memory);
  int64_t (*memory)(const Problem<T>&);
};

template <typename Entry, typename Isa, typename T>
VLKD_INLINE void work_with(const Problem<T>& problem, Slab<T>* begin, Slab<T>* end, T* memory) {
  Workspace<T> workspace;
  workspace.template cut<Entry, Isa>(problem, memory);
  for (Slab<T>* slab = begin; slab < end; ++slab) work_on_slab<Entry, Isa>(problem, *slab, workspace);
}

template <typename T>
void work_baseline(const Problem<T>& problem, Slab<T>* begin, Slab<T>* end, T* memory) {
  work_with<T, Baseline>(problem, begin, end, memory);
}

#ifdef VLKD_AVX512
template <typename T>
VLKD_AVX2 void work_avx2(const Problem<T>& problem, Slab<T>* begin, Slab<T>* end, T* memory) {
  work_with<T, Avx2>(problem, begin, end, memory);
}

template <typename T>
VLKD_AVX512 void work_avx512(const Problem<T>& problem, Slab<T>* begin, Slab<T>* end, T* memory) {
  work_with<T, Avx512>(problem, begin, end, memory);
}
#endif

#ifdef VLKD_AVX512_BF16
VLKD_AVX512 void work_avx512_bf16(const Problem<float>& problem, Slab<float>* begin, Slab<float>* end, float* memory) {
  work_with<Bf16Pair, Avx512Bf16>(problem, begin, end, memory);
}
#endif

#ifdef VLKD_AMX
VLKD_AVX512 void work_amx(const Problem<float>& problem, Slab<float>* begin, Slab<float>* end, float* memory) {
  const WholeTiles tiles;
  work_with<Bf16Pair, Amx>(problem, begin, end, memory);
}
#endif

template <typename T>
Code<T> code(const Problem<T>& p) {
  [[maybe_unused]] const InstructionSet best = instruction_set();
#ifdef VLKD_AVX512_BF16
  if constexpr (std::is_same_v<T, float>) {
    const auto is_bf16 = [](const Operand& x) { return x.type == at::kBFloat16; };
    const bool all_bf16 = is_bf16(p.q_s) && is_bf16(p.k_s) && is_bf16(p.q_t) && is_bf16(p.k_t);
#ifdef VLKD_AMX
    if (best >= InstructionSet::kAmx && all_bf16) return {work_amx, Workspace<T>::template size<Bf16Pair, Amx>};
#endif
    if (best >= InstructionSet::kAvx512Bf16 && all_bf16) {
      return {work_avx512_bf16, Workspace<T>::template size<Bf16Pair, Avx512Bf16>};
    }
  }
#endif
#ifdef VLKD_AVX512
  if (best >= InstructionSet::kAvx512) return {work_avx512<T>, Workspace<T>::template size<T, Avx512>};
  if (best >= InstructionSet::kAvx2) return {work_avx2<T>, Workspace<T>::template size<T, Avx2>};
#endif
  return {work_baseline<T>, Workspace<T>::template size<T, Baseline>};
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// How many slabs each of `key_heads` heads is cut into: enough to share, none too small, not too much memory for their dK.
template <typename T>
int64_t slabs_per_head(const Problem<T>& p, int64_t key_heads) {
  const int64_t entries = p.group_s * p.queries * p.keys, grad_k = p.keys * p.q_s.width;
  const int64_t wanted = std::min((kSlabs + key_heads - 1) / key_heads, entries / kWorthASlab);
  const int64_t room = p.with_grad ? kLargestPartial / std::max<int64_t>(1, key_heads * grad_k) : wanted;
  return std::clamp<int64_t>(std::min(wanted, room), 1, p.group_s * p.tiles);
}

template <typename T>
Outputs run(Problem<T> p, const at::Tensor& q_s, const at::Tensor& k_s, bool mean) {
  const at::TensorOptions options = q_s.options().dtype(accumulation_type(q_s));
  const int64_t key_heads = k_s.size(0) * k_s.size(1), size = p.keys * p.q_s.width;
  at::Tensor grad_q = at::empty(p.with_grad ? q_s.sizes() : at::IntArrayRef{0}, options);
  at::Tensor grad_k = at::empty(p.with_grad ? k_s.sizes() : at::IntArrayRef{0}, options);
  const int64_t count = q_s.numel() == 0 || k_s.numel() == 0 ? 0 : p.counted_rows();
  double loss = 0;
  if (count == 0) {
    grad_q.zero_();
    grad_k.zero_();
  } else {
    p.cut_tiles();
    p.weight = T(1) / static_cast<T>(mean ? count : 1);
    p.grad_q = grad_q.mutable_data_ptr<T>();
    const int64_t parts = slabs_per_head(p, key_heads), tiles = p.group_s * p.tiles;
    const at::Tensor partial = parts > 1 && p.with_grad ? at::empty({key_heads, parts, size}, options) : grad_k;
    std::vector<Slab<T>> slabs(key_heads * parts);
    for (int64_t i = 0; i < key_heads * parts; ++i) {
      const int64_t part = i % parts;
      T* to = p.with_grad ? partial.mutable_data_ptr<T>() + i * size : nullptr;
      slabs[i] = {i / parts, tiles * part / parts, tiles * (part + 1) / parts, to, 0};
    }
    const Code<T> code = vlkd::code(p);
    const int64_t memory = code.memory(p), slab_entries = p.group_s * p.queries * p.keys / parts;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), slabs.size());
    const Scratch workspace(threads * memory * static_cast<int64_t>(sizeof(T)));
    at::parallel_for(0, slabs.size(), grain(kWorkOfASlab + kWorkOfAnEntry * slab_entries), [&](int64_t begin, int64_t end) {
      T* own = workspace.data<T>() + at::get_thread_num() * memory;
      code.work(p, slabs.data() + begin, slabs.data() + end, own);
    });
    for (const Slab<T>& slab : slabs) loss += slab.loss;
    loss /= mean ? count : 1;
    if (parts > 1 && p.with_grad) {
      at::Tensor total = grad_k.view({key_heads, size});
      at::sum_out(total, partial, /*dim=*/1);
    }
  }
  const auto scalar = [&](double value) { return at::scalar_tensor(value, options); };
  return {scalar(loss), scalar(static_cast<double>(count)), scalar(1), grad_q, grad_k};
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
    const at::Tensor mask = attn_mask->expand({q.size(0), q.size(1), q.size(2), k.size(2)});
    result.mask = mask.const_data_ptr<bool>();
    std::copy_n(mask.strides().begin(), 4, result.strides);
  }
  if (query_mask.has_value()) {
    result.counted = query_mask->const_data_ptr<bool>();
    std::copy_n(query_mask->strides().begin(), 2, result.counted_strides);
  }
  return result;
}

Outputs attention_mse_cpu(
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
  const PlainArithmetic plain;
  check_arguments(q_s, k_s, q_t, k_t, attn_mask, query_mask, distance);
  const auto run_in = [&](auto zero) {
    using T = decltype(zero);
    Problem<T> problem{};
    problem.q_s = operand(q_s);
    problem.k_s = operand(k_s);
    problem.q_t = operand(q_t);
    problem.k_t = operand(k_t);
    problem.batch = q_s.size(0);
    problem.heads = q_s.size(1);
    problem.group_s = q_s.size(1) / std::max<int64_t>(1, k_s.size(1));
    problem.group_t = q_s.size(1) / std::max<int64_t>(1, k_t.size(1));
    problem.queries = q_s.size(2);
    problem.keys = k_s.size(2);
    problem.scale_s = static_cast<T>(scale_s);
    problem.scale_t = static_cast<T>(scale_t);
    problem.visibility = visibility(q_s, k_s, attn_mask, query_mask, is_causal);
    problem.kl = distance == "kl";
    problem.with_grad = with_grad;
    return run(problem, q_s, k_s, mean);
  };
  return accumulation_type(q_s) == at::kDouble ? run_in(double{}) : run_in(float{});
}

} // namespace

TORCH_LIBRARY_IMPL(vlkd, CPU, m) {
  m.impl("attention_mse", &attention_mse_cpu);
}

} // namespace vlkd
