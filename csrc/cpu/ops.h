// One operation at a time on plain fp32 arrays: what tests and benchmarks call. Each lays its
// arrays out as a forward pass does, runs the kernel, and gives fp32 back.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "attend.h"
#include "memory.h"
#include "model.h"
#include "pack.h"
#include "pool.h"
#include "types.h"

namespace urial::cpu {

// A linear layer. Gated: the weight's first half of rows is the gate, the second what it gates.
class Linear {
 public:
  // weight [n][k], bias [n] or null.
  Linear(const Kernels& kernels, int threads, const void* weight, Source type, int n, int k,
         const float* bias, bool gated);

  int inputs() const { return w_.k; }
  int outputs() const { return outputs_; }
  // x [rows][inputs] -> out [rows][outputs]; with `add`, onto what stands in out.
  void run(const float* x, int rows, bool add, float* out);

 private:
  const Kernels& k_;
  Team team_;
  Packed w_;
  const bool gated_;
  const int outputs_;
  Memory weight_, x_, y_;  // x_ and y_ hold capacity_ rows
  std::vector<float> bias_;
  int capacity_ = 0;
};

// The rows of a call: as in AttentionArgs.
struct Rows {
  const int32_t *positions, *sequences, *tables;
  int count, table_stride;
};

// A pool of KV-cache blocks for one layer, and the two kernels that touch it.
class Cache {
 public:
  // window <= 0: none.
  Cache(const Kernels& kernels, int threads, int heads, int kv_heads, int head_dim, int window,
        int blocks);

  int heads() const { return shape_.heads; }
  int kv_heads() const { return shape_.kv_heads; }
  int head_dim() const { return shape_.head_dim; }
  size_t blocks() const { return pool_.bytes() / shape_.block_bytes; }
  size_t block_bytes() const { return shape_.block_bytes; }
  const char* block(size_t i) const { return pool_.data() + i * shape_.block_bytes; }

  // qkv [T][(H + 2 K) D], cos and sin [positions][D / 2]: keys and values go to their slots, the
  // turned queries to q [T][H][D]. The first row that is not finite, or -1.
  int rope(const Rows& rows, const float* qkv, const float* cos, const float* sin, float* q);
  // q [T][H][D] -> out [T][H][D], in tiles of about this many queries. parts: as in AttentionArgs;
  // 0 for as many as a forward pass would take.
  void attend(const Rows& rows, const float* q, int tile_queries, int parts, float* out);

 private:
  AttentionArgs args(const Rows& rows) const;
  // Where query head h of row t lies among the queries of `rows` rows.
  char* query(int t, int h, int rows) const;

  const Kernels& k_;
  Team team_;
  Attend attend_;
  AttentionArgs shape_{};
  Memory pool_, q_, out_;
};

// x [rows][n], weight [n] -> full [rows][n], and the same as the next product reads it. The first
// row that is not finite, or -1.
int rmsnorm(const Kernels& kernels, const float* x, const float* weight, float eps, int rows, int n,
            float* full, float* rounded);

// A model of no layers: its head by itself, with all its exits. weight [vocab][hidden].
std::unique_ptr<Model> head_alone(const std::string& isa, Dtype dtype, int threads,
                                  const void* weight, Source type, int vocab, int hidden);

}  // namespace urial::cpu
