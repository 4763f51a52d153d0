// The head's exit for generation: logits of M rows -> one token a row.
#pragma once
#include "model.h"

namespace urial::cpu {

// Ragged lists: row i owns entries offsets[i] .. offsets[i + 1].
struct SampleArgs {
  const float* hidden;  // [M][C]
  int rows, top_logprobs;
  const float *temperature, *top_p, *min_p, *repetition, *presence, *frequency;  // [M]
  const int32_t* top_k;                                                          // [M]
  const uint64_t* seed;                                                          // [M]
  const uint32_t *sample, *position;                                             // [M]
  const int32_t *penalty_offsets, *penalty_ids, *penalty_counts;
  const uint8_t* penalty_repeats;
  const int32_t *banned_offsets, *banned_ids;
  int32_t *token_ids, *rank;  // [M] out
  float* logprob;             // [M] out, nats, of the raw model
  int32_t* top_ids;           // [M][top_logprobs] out
  float* top_values;          // [M][top_logprobs] out, log-probabilities
};

// The first row whose logits are not finite or leave nothing to choose from, or -1.
int next_tokens(Model& model, const SampleArgs& args);

// Logits of M rows, [M][V]. The first row that is not finite, or -1.
int all_logits(Model& model, const float* hidden, int rows, float* out);

}  // namespace urial::cpu
