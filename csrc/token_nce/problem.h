// What host and device know of token_nce's GPU kernels (kernels.cuh): their argument, and how it is cut into chunks.
//
// Legend: N tokens, E embedding width, K negatives; C tokens and J candidates of a chunk.
#pragma once

#include "../common/element.h"
#include "../common/tile.h"

#include <cstdint>

namespace vlkd {

// Rows as the caller gave them.
struct RowsInput {
  const void* data;
  Element type;
  int64_t row, column; // strides
};

struct NceProblem {
  RowsInput h_s, h_t, negatives;
  int64_t tokens, rows, columns, width; // N; K; candidates; E
  const bool* token_mask;               // [N] or null
  const int64_t *token_ids, *negative_ids, *fill;
  float temperature; // where `temperature_tensor` is null
  const void* temperature_tensor;
  Element temperature_type;
  bool normalize, normalize_negatives, with_grad;
  // Rows as the products take them, T [N, stride] and [columns, stride]: the caller's own, or memory to copy them to.
  const void *students, *candidates;
  int64_t student_stride, candidate_stride;
  bool copy_students, copy_candidates;
  float* divisors; // [columns], what is left of the candidates' lengths; null where they are 1
  // Memory: float [N] each; T [C, J]; float [kSums, J / kTile, C]; float [kSums, N], the sums so far; float [C].
  float *norm_s, *norm_t, *positives, *masses, *scales;
  void* weights;
  int64_t chunk, candidate_chunk; // C and J, a multiple of kTile each
  float *partial, *state, *change;
  // Results: float [N, E]; [4, N]: loss, positive similarity, mean negative similarity, positive at the top; [N].
  float *gradient, *values, *grad_temperature;
};

// Of the rows that the products take.
constexpr int64_t padded_width(int64_t width) {
  return (width + 7) / 8 * 8;
}

// What a tile leaves of each of its rows, in this order: the largest b, from which the reference follows, and sums. The largest
// is replaced by the factor from the tile's reference to the token's.
enum TileSum { kLargest, kWeights, kDifferences, kSimilarities, kSeen, kSums };

// The weights of a chunk stay in the second-level cache between the two products: 32 MiB. Rather many tokens than many
// candidates, for the blocks of the second product share the tokens and the width alone.
inline void cut_chunks(NceProblem& p) {
  constexpr int64_t kTokens = 8192, kCandidates = 2048;
  const auto tiles = [](int64_t size) { return size > 0 ? (size + kTile - 1) / kTile : 1; };
  const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
  p.chunk = smaller(kTokens, tiles(p.tokens) * kTile);
  p.candidate_chunk = smaller(kTokens * kCandidates / p.chunk / kTile, tiles(p.columns)) * kTile;
}

} // namespace vlkd
