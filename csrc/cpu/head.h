// The head's exits for scoring: rank, ties, log-probability, entropy, top-k, and KL between two
// heads, over vocabulary tiles that stay in cache. The logits of a row are never all there at once.
#pragma once
#include "model.h"

namespace urial::cpu {

struct ScoreArgs {
  const float* hidden;     // [M][C]
  const int32_t* targets;  // [M]
  int rows, top_k;
  int32_t *rank, *ties;      // [M] out
  float *logprob, *entropy;  // [M] out, nats
  int32_t* top_ids;          // [M][top_k] out
  float* top_logprobs;       // [M][top_k] out
  float* kl;                 // [M] out: KL(this || other); null for a head by itself
};

// Each returns the first row whose logits are not finite, or -1 when all are.
int score(Model& model, const ScoreArgs& args);
// Two heads over the same tiles, each with the other's hidden states beside it; fills both.
int compare(Model& base, const ScoreArgs& of_base, Model& aligned, const ScoreArgs& of_aligned);

// Without any parameter: of each row the first of the largest logits and its log-probability.
int greedy(Model& model, const float* hidden, int rows, int32_t* token_ids, float* logprob);

// Logits of M rows, [M][out_stride], out_stride >= V rounded up to whole panels; columns past V
// read as kPadLogit. Inside team().run().
void logits(Model& model, int thread, const void* x, int rows, float* out, ptrdiff_t out_stride);

}  // namespace urial::cpu
