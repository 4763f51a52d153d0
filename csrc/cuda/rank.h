// The head's exits for scoring on a GPU: rank, ties, log-probability, entropy, top-k, and KL
// between two heads, over blocks of the vocabulary that somebody else has multiplied. All pointers
// are the device's; no launcher waits.
//
// A tile is kTile columns at an absolute multiple of kTile. Its statistics come from it alone, in
// one order, and tiles are merged in one order at the end: what a row gets depends neither on other
// rows nor on how the vocabulary was cut into blocks.
#pragma once
#include "../rank.h"
#include "launch.h"

namespace urial::cuda {

constexpr int kTile = 1024;
URIAL_BOTH constexpr int tiles_of(int columns) { return (columns + kTile - 1) / kTile; }

// Logits of the columns [first, first + columns) of a vocabulary: whole tiles, but for its end.
struct Block {
  const float* z;  // [rows][stride], 16-byte aligned, stride a multiple of 4
  int rows, columns, stride, first, vocab;
};

// out[row] = z[row][ids[row]], or z[row][row] where ids is null.
struct TakeArgs {
  const float* z;  // [rows][stride]
  const int32_t* ids;
  float* out;
  int rows, stride;
};
cudaError_t take_logits(const TakeArgs& args, cudaStream_t stream);

struct TileArgs {
  Block block;
  const float* other;         // the other head's same block with the same stride, or null
  const int32_t* targets;     // [rows]
  const float* target_logit;  // [rows]
  TileStats* stats;           // [rows][tiles_of(vocab)]; those of the block are written
  float* seen;                // [rows] or null: the target's logit as its own tile has it
};
cudaError_t rank_tile(const TileArgs& args, cudaStream_t stream);

// After rank_tile of the same block; the block with first == 0 comes before all others.
struct TopArgs {
  Block block;
  const TileStats* stats;
  int k;
  Entry* entries;  // [rows][k]
};
cudaError_t top_k_tile(const TopArgs& args, cudaStream_t stream);

struct FinishArgs {
  const TileStats *stats, *other_stats;  // [rows][tiles_of(vocab)]; other_stats where kl is wanted
  const float *target_logit, *seen;      // [rows]; seen where mismatches are counted
  const Entry* entries;                  // [rows][k]
  int rows, vocab, k;
  int32_t *rank, *ties;      // [rows] out
  float *logprob, *entropy;  // [rows] out, nats
  int32_t* top_ids;          // [rows][k] out
  float* top_logprobs;       // [rows][k] out
  float* kl;                 // [rows] out: KL(this || other); or null
  int32_t* finite;           // [rows] out, 0 or 1
  // Grows by the rows whose target logit differs in any bit from the one its tile has: a matrix
  // product of other shape may round otherwise. With target_logit = seen they are exact.
  int32_t* mismatches;
};
cudaError_t rank_finish(const FinishArgs& args, cudaStream_t stream);

}  // namespace urial::cuda
