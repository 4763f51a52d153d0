// Causal attention over the blocks of the cache. Every block of 64 keys is reduced by itself and
// the blocks are merged in order, so a row's result depends on its own keys and their absolute
// positions alone. Rows beside each other that read the same physical block are multiplied with it
// together: that is how a shared prefix is read once for all. Where a call has few rows, threads
// share out a tile's blocks and leave each block's own result to be merged by the last of them:
// the same merges in the same order, so the same bits.
#pragma once
#include <cmath>

#include "matmul.h"

namespace urial::cpu::URIAL_RUNG {

// The maximum of no keys: finite, so that two of them may be subtracted.
constexpr float kNothing = -3.40282347e38f;

// A softmax-weighted sum of values for some queries, not yet divided by `sum`: that of one block,
// or of all blocks so far. Scores are relative to `max`.
struct Weighted {
  float *max, *sum;  // [queries]
  float* out;        // [queries][padded D]

  Weighted from(int query, int width) const {
    return {max + query, sum + query, out + query * width};
  }
};

// The sum of no block.
inline void clear(const Weighted& w, int queries, int width) {
  for (int i = 0; i < queries; ++i) w.max[i] = kNothing, w.sum[i] = 0;
  for (int i = 0; i < queries * width; ++i) w.out[i] = 0;
}

struct Span {
  int begin, end;  // keys of the block that a query sees
};

inline Span visible(int position, int block, int window) {
  const int first = window > 0 && position >= window ? position - window + 1 - block * kBlock : 0;
  const int last = position + 1 - block * kBlock;
  return {first > 0 ? first : 0, last < kBlock ? last : kBlock};
}

// Scores of one query against a block -> probabilities in p, their maximum and sum. Keys outside
// the span get 0.
template <class P>
inline void block_softmax(float* scores, Span seen, float scale, typename P::X* p, float& max,
                          float& sum_out) {
  using F = typename P::F;
  for (int j = 0; j < seen.begin; ++j) scores[j] = -INFINITY;
  for (int j = seen.end; j < kBlock; ++j) scores[j] = -INFINITY;
  F top = P::load(scores);
  for (int j = P::W; j < kBlock; j += P::W) top = P::max(top, P::load(scores + j));
  const float raw = P::largest(top);
  const F shift = P::set1(raw), factor = P::set1(scale);
  for (int j = 0; j < kBlock; j += P::W)
    P::store(scores + j, exp(P::mul(P::sub(P::load(scores + j), shift), factor)));
  for (int j = 0; j < seen.begin; ++j) scores[j] = 0;
  for (int j = seen.end; j < kBlock; ++j) scores[j] = 0;
  F total = P::zero();
  for (int j = 0; j < kBlock; j += P::W) {
    total = P::add(total, P::load(scores + j));
    P::store_x(p + j, P::load(scores + j));
  }
  max = raw * scale, sum_out = P::sum(total);
}

// run = run and the block, in that order, for `rows` queries. Where the block has nothing for a
// query (its max is kNothing), the query keeps its bits.
template <class P>
inline void merge(const Weighted& run, const Weighted& block, int rows, int width) {
  using F = typename P::F;
  constexpr int kPadded = (kMaxQueries + P::W - 1) / P::W * P::W;
  float old_scale[kPadded], new_scale[kPadded];
  for (int m = 0; m < rows; ++m) {
    const float before = run.max[m], top = block.max[m] > before ? block.max[m] : before;
    old_scale[m] = before - top, new_scale[m] = block.max[m] - top;
    run.max[m] = top;
  }
  for (int m = rows; m < round_up(rows, P::W); ++m) old_scale[m] = new_scale[m] = 0;
  for (int m = 0; m < rows; m += P::W) {
    P::store(old_scale + m, exp(P::load(old_scale + m)));
    P::store(new_scale + m, exp(P::load(new_scale + m)));
  }
  for (int m = 0; m < rows; ++m) {
    run.sum[m] = run.sum[m] * old_scale[m] + block.sum[m] * new_scale[m];
    const F a = P::set1(old_scale[m]), b = P::set1(new_scale[m]);
    const float* from = block.out + m * width;
    float* to = run.out + m * width;
    for (int d = 0; d < width; d += P::W)
      P::store(to + d, P::fma(P::load(from + d), b, P::mul(P::load(to + d), a)));
  }
}

// The queries of one key head in some rows beside each other.
template <class P>
class Tile {
 public:
  Tile(const AttentionArgs& a, int kv_head, int tile)
      : a_(a),
        group_(a.heads / a.kv_heads),
        width_(round_up(a.head_dim, kPanel)),
        kv_head_(kv_head),
        row0_(tile * a.tile_rows),
        rows_(row0_ + a.tile_rows < a.rows ? a.tile_rows : a.rows - row0_),
        scale_(1.f / std::sqrt(float(a.head_dim))),
        q_(static_cast<const typename P::X*>(a.q) +
           (size_t(kv_head) * a.rows + row0_) * group_ * width_) {
    for (int r = 0; r < rows_; ++r) {
      const int position = a.positions[row0_ + r];
      const int oldest =
          a.window > 0 && position >= a.window ? (position - a.window + 1) / kBlock : 0;
      first_ = oldest < first_ ? oldest : first_;
      end_ = position / kBlock >= end_ ? position / kBlock + 1 : end_;
    }
  }

  int queries() const { return rows_ * group_; }
  int width() const { return width_; }
  // Blocks that some row sees: [first(), end()).
  int first() const { return first_; }
  int end() const { return end_; }

  // What the blocks [begin, end) have for the queries, a block at a time, in order:
  // found(block, first query, queries, Weighted). A block that a query does not see may be left
  // out for it.
  template <class Found>
  void visit(int begin, int end, Found&& found) const {
    Inner<P> inner;
    for (int b = begin; b < end; ++b) {
      Span seen[kMaxQueries];
      int32_t block[kMaxQueries];  // physical, by row; -1 where the row sees none of its keys
      for (int r = 0; r < rows_; ++r) {
        const Span span = visible(a_.positions[row0_ + r], b, a_.window);
        for (int g = 0; g < group_; ++g) seen[r * group_ + g] = span;
        block[r] = span.begin < span.end ? physical(r, b) : -1;
      }
      for (int r = 0, next; r < rows_; r = next) {  // runs of rows that read the same block
        for (next = r + 1; next < rows_ && block[next] == block[r];) ++next;
        if (block[r] < 0) continue;
        const char* at = address(block[r]);
        inner.ahead = b + 1 < end ? address(physical(r, b + 1)) - at : 0;
        reduce(inner, at, r * group_, (next - r) * group_, seen + r * group_,
               [&](int query, int count, const Weighted& w) { found(b, query, count, w); });
      }
    }
  }

  // out = the queries' sums, divided.
  void write(const Weighted& run) const {
    for (int i = 0; i < queries(); ++i) {
      auto* to = static_cast<typename P::X*>(a_.out) + size_t(row0_ + i / group_) * a_.out_stride +
                 (kv_head_ * group_ + i % group_) * a_.head_dim;
      const float scale = 1.f / run.sum[i];
      for (int d = 0; d < a_.head_dim; ++d) to[d] = P::to_x(run.out[i * width_ + d] * scale);
    }
  }

 private:
  int32_t physical(int row, int block) const {
    return a_.tables[size_t(a_.sequences[row0_ + row]) * a_.table_stride + block];
  }
  const char* address(int32_t block) const {
    return a_.pool + size_t(block) * a_.block_bytes + a_.layer_offset +
           kv_head_ * CacheLayout(a_.head_dim, P::kDtype).head_bytes();
  }

  // One block against the queries [first, first + count); seen[i] is the span of the i-th of them.
  template <class Found>
  void reduce(Inner<P>& inner, const char* block, int first, int count, const Span* seen,
              Found&& found) const {
    const auto* keys = reinterpret_cast<const typename P::Wt*>(block);
    const auto* values = reinterpret_cast<const typename P::Wt*>(
        block + CacheLayout(a_.head_dim, P::kDtype).key_bytes);
    const int key_steps = width_ / P::kStep, value_steps = kBlock / P::kStep;
    constexpr int kRows = Inner<P>::kRows;
    float scores[kRows * kBlock], out[kRows * kMaxHead], max[kRows], sum[kRows];
    typename P::X p[kRows * kBlock];
    Inner<P>::tiles(count, [&](int row, int rows) {
      for (int panel = 0; panel < kBlock / kPanel; ++panel)
        inner(rows, q_ + size_t(first + row) * width_, width_,
              keys + size_t(panel) * width_ * kPanel, key_steps, scores + panel * kPanel, kBlock);
      for (int m = 0; m < rows; ++m) {
        const Span span = seen[row + m];
        if (span.begin < span.end) {
          block_softmax<P>(scores + m * kBlock, span, scale_, p + m * kBlock, max[m], sum[m]);
        } else {
          for (int j = 0; j < kBlock; ++j) p[m * kBlock + j] = 0;
          max[m] = kNothing, sum[m] = 0;
        }
      }
      for (int panel = 0; panel < width_ / kPanel; ++panel)
        inner(rows, p, kBlock, values + size_t(panel) * kBlock * kPanel, value_steps,
              out + panel * kPanel, width_);
      found(first + row, rows, Weighted{max, sum, out});
      inner.ahead = 0;  // the next rows find the block in a cache
    });
  }

  const AttentionArgs& a_;
  const int group_, width_, kv_head_, row0_, rows_;
  const float scale_;
  const typename P::X* q_;  // [queries][width]
  int first_ = INT32_MAX, end_ = 0;
};

template <class P>
void attention(const AttentionArgs& a, int kv_head, int at) {
  const Tile<P> tile(a, kv_head, at);
  const int width = tile.width();
  float max[kMaxQueries], sum[kMaxQueries], out[kMaxQueries * kMaxHead];
  const Weighted run{max, sum, out};
  clear(run, tile.queries(), width);
  tile.visit(tile.first(), tile.end(), [&](int, int query, int count, const Weighted& block) {
    merge<P>(run.from(query, width), block, count, width);
  });
  tile.write(run);
}

// Where a block's result stands until it is merged.
template <class P>
inline Weighted part_result(const AttentionArgs& a, const Tile<P>& tile, int kv_head, int block) {
  const int queries = tile.queries();
  float* at = a.part_memory + (size_t(kv_head) * a.table_stride + block) * a.part_floats(queries);
  return {at, at + queries, at + 2 * queries};
}

template <class P>
void attention_part(const AttentionArgs& a, int kv_head, int part) {
  const Tile<P> tile(a, kv_head, 0);
  const int blocks = tile.end() - tile.first(), width = tile.width();
  const int begin = tile.first() + blocks * part / a.parts,
            end = tile.first() + blocks * (part + 1) / a.parts;
  for (int b = begin; b < end; ++b) clear(part_result(a, tile, kv_head, b), tile.queries(), width);
  tile.visit(begin, end, [&](int b, int query, int count, const Weighted& block) {
    const Weighted to = part_result(a, tile, kv_head, b).from(query, width);
    for (int m = 0; m < count; ++m) to.max[m] = block.max[m], to.sum[m] = block.sum[m];
    for (int i = 0; i < count * width; i += P::W) P::store(to.out + i, P::load(block.out + i));
  });
}

template <class P>
void attention_merge(const AttentionArgs& a, int kv_head) {
  const Tile<P> tile(a, kv_head, 0);
  float max[kMaxQueries], sum[kMaxQueries], out[kMaxQueries * kMaxHead];
  const Weighted run{max, sum, out};
  clear(run, tile.queries(), tile.width());
  for (int b = tile.first(); b < tile.end(); ++b)
    merge<P>(run, part_result(a, tile, kv_head, b), tile.queries(), tile.width());
  tile.write(run);
}

}  // namespace urial::cpu::URIAL_RUNG
