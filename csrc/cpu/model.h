// A Llama or Mistral model on the CPU: weights, KV-cache pool, threads, and one call for all
// layers.
//
// The Python side owns names and files; this side owns memory and arithmetic. Nothing here knows
// what a block means.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "attend.h"
#include "memory.h"
#include "pack.h"
#include "pool.h"
#include "types.h"

namespace urial::cpu {

// std::invalid_argument where find_kernels has none.
const Kernels& kernels_or_throw(const std::string& isa, Dtype dtype);

struct Shape {
  int vocab, hidden, feed_forward, layers, heads, kv_heads, head_dim, window, positions;
  float norm_eps;
  bool tied;  // the embedding is the head
};

// A weight that the caller fills: what it is, and where its rows go.
enum class Part { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kHead, kEmbedding };

struct ForwardArgs {
  const int32_t *token_ids, *positions, *sequences;  // [T]
  const int32_t* tables;                             // [B][table_stride]
  int rows, table_stride;
  float* hidden;  // [T][C] out
};

// Where a value that is not finite was first seen; layer -1 is the embedding, row -1 means that
// all is well.
struct Fault {
  int layer, row;
};

class Model {
 public:
  // frequencies [D / 2]: radians a position.
  Model(const Shape& shape, Dtype dtype, const std::string& isa, int threads,
        const float* frequencies);

  const Shape& shape() const { return shape_; }
  const Kernels& kernels() const { return k_; }
  Team& team() { return team_; }

  // Weights. A source is [rows, columns] in the checkpoint's own order: the part's rows from
  // `first` on. Threads of the caller's may load different rows at the same time.
  void load_matrix(Part part, int layer, int first, const void* source, Source type, int rows,
                   int columns);
  void load_bias(Part part, int layer, const float* bias, int n);
  void load_norm(int layer, bool feed_forward, const float* weight);  // layer == L: the final norm
  size_t weight_bytes() const { return weight_bytes_; }

  // KV-cache.
  size_t block_bytes() const { return block_bytes_; }
  void allocate(size_t blocks);
  size_t blocks() const { return blocks_; }
  char* block(size_t i) const { return pool_.data() + i * block_bytes_; }

  Fault forward(const ForwardArgs& args);

  // The head. Activations of M hidden states are made once, then vocabulary tiles are computed
  // where they are needed.
  const Packed& head() const { return head_.w; }
  int head_stride() const { return row_stride(shape_.hidden, k_.x_bytes); }
  // Memory for them, and for logits, kept from call to call.
  char* activation_memory(int rows) {
    return head_x_.at_least(size_t(rows) * head_stride() * k_.x_bytes);
  }
  float* logit_memory(size_t count) {
    return reinterpret_cast<float*>(head_z_.at_least(count * sizeof(float)));
  }
  // Inside team().run(): hidden [rows][C] -> activations [rows][head_stride()].
  void activations(int thread, const float* hidden, int rows, void* x);

 private:
  struct Matrix {
    Packed w;
    std::vector<float> bias;
  };
  struct Layer {
    std::vector<float> attention_norm, feed_forward_norm;
    Matrix qkv, output, gate_up, down;
  };
  struct Place {
    Matrix* matrix;
    int rows;
    Columns columns;
  };
  class Pass;  // one forward call, in forward.cpp

  Place place(Part part, int layer);
  void make(Matrix& m, int n, int k);
  void reserve(int rows);
  void rotate(int positions);

  const Shape shape_;
  const Dtype dtype_;
  const Kernels& k_;
  Team team_;
  const std::vector<float> frequencies_;
  std::vector<float> cos_, sin_;  // [positions so far][D / 2]
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  Matrix head_, embedding_;
  Memory weights_;  // of all matrices, one behind the other: so most of its pages can be huge
  size_t weight_bytes_ = 0, block_bytes_ = 0, blocks_ = 0;
  Memory pool_;

  Memory head_x_, head_z_;

  // Activations of a call of up to capacity_ rows, kept between calls.
  int capacity_ = 0;
  Attend attend_;
  Memory residual_, normed_, qkv_, queries_, attended_, act_;
};

}  // namespace urial::cpu
