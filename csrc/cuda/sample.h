// The next token of each of M rows on a GPU, from raw logits: kernels/sample says what is computed.
#pragma once
#include "launch.h"

namespace urial::cuda {

constexpr int kIdBits = 20, kMaxVocab = 1 << kIdBits;

// All pointers are the device's. Ragged lists: row i owns entries offsets[i] .. offsets[i + 1].
struct SampleArgs {
  float* z;  // [M][stride], V columns; changed while the kernel runs, and put back
  int rows, vocab, stride;
  const float *temperature, *top_p, *min_p, *repetition, *presence, *frequency;  // [M]
  const int32_t* top_k;                                                          // [M]
  const uint64_t* seed;                                                          // [M]
  const uint32_t *sample, *position;                                             // [M]
  const int32_t *penalty_offsets, *penalty_ids, *penalty_counts;  // ids distinct within a row
  const uint8_t* penalty_repeats;
  const int32_t *banned_offsets, *banned_ids;
  float* scratch;                 // an element for each penalty and each banned id
  int32_t *token_ids, *possible;  // [M] out; not possible where the largest score is not finite
};
cudaError_t sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace urial::cuda
