// Causal attention over the blocks of the cache. Every block of 64 keys is reduced by itself and
// the blocks are merged in order, so a row's result depends on its own keys and their absolute
// positions alone. Rows beside each other that read the same physical block are multiplied with it
// together: that is how a shared prefix is read once for all.
#pragma once
#include <cmath>

#include "matmul.h"

namespace urial::cpu::URIAL_RUNG {

// The maximum of no keys: finite, so that two of them may be subtracted.
constexpr float kNothing = -3.40282347e38f;

// Running softmax of one tile's queries.
struct Running {
  float max[kMaxQueries], sum[kMaxQueries];
  float* out;  // [queries][padded D]
};

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

// running = merge(running, the block's own max, sum and out [rows][width]) for queries first and
// on. Where the block has nothing for a query (its max is kNothing), the query's state keeps its
// bits.
template <class P>
inline void merge(Running& run, int first, int rows, const float* max, const float* sum,
                  const float* out, int width) {
  using F = typename P::F;
  constexpr int kPadded = (Inner<P>::kRows + P::W - 1) / P::W * P::W;
  float old_scale[kPadded] = {}, new_scale[kPadded] = {};
  for (int m = 0; m < rows; ++m) {
    const float before = run.max[first + m], top = max[m] > before ? max[m] : before;
    old_scale[m] = before - top, new_scale[m] = max[m] - top;
    run.max[first + m] = top;
  }
  for (int m = 0; m < rows; m += P::W) {
    P::store(old_scale + m, exp(P::load(old_scale + m)));
    P::store(new_scale + m, exp(P::load(new_scale + m)));
  }
  for (int m = 0; m < rows; ++m, out += width) {
    run.sum[first + m] = run.sum[first + m] * old_scale[m] + sum[m] * new_scale[m];
    const F a = P::set1(old_scale[m]), b = P::set1(new_scale[m]);
    float* to = run.out + (first + m) * width;
    for (int d = 0; d < width; d += P::W)
      P::store(to + d, P::fma(P::load(out + d), b, P::mul(P::load(to + d), a)));
  }
}

// One block against the queries [first, first + count) of the tile; seen[i] is the span of query i.
template <class P>
inline void visit(Inner<P>& inner, const AttentionArgs& a, const typename P::X* q,
                  const char* block, Running& run, int first, int count, const Span* seen) {
  const int D = a.head_dim, width = round_up(D, kPanel);
  const CacheLayout layout(D, P::kDtype);
  const auto* keys = reinterpret_cast<const typename P::Wt*>(block);
  const auto* values = reinterpret_cast<const typename P::Wt*>(block + layout.key_bytes);
  const int key_steps = width / P::kStep, value_steps = kBlock / P::kStep;
  const float scale = 1.f / std::sqrt(float(D));
  constexpr int kRows = Inner<P>::kRows;
  float scores[kRows * kBlock], out[kRows * kMaxHead], max[kRows], total[kRows];
  typename P::X p[kRows * kBlock];
  Inner<P>::tiles(count, [&](int row, int rows) {
    for (int panel = 0; panel < kBlock / kPanel; ++panel)
      inner(rows, q + size_t(first + row) * width, width, keys + size_t(panel) * width * kPanel,
            key_steps, scores + panel * kPanel, kBlock);
    for (int m = 0; m < rows; ++m) {
      const Span span = seen[first + row + m];
      if (span.begin < span.end) {
        block_softmax<P>(scores + m * kBlock, span, scale, p + m * kBlock, max[m], total[m]);
      } else {
        for (int j = 0; j < kBlock; ++j) p[m * kBlock + j] = 0;
        max[m] = kNothing, total[m] = 0;
      }
    }
    for (int panel = 0; panel < width / kPanel; ++panel)
      inner(rows, p, kBlock, values + size_t(panel) * kBlock * kPanel, value_steps,
            out + panel * kPanel, width);
    merge<P>(run, first + row, rows, max, total, out, width);
  });
}

template <class P>
void attention(const AttentionArgs& a, int kv_head, int tile) {
  const int D = a.head_dim, G = a.heads / a.kv_heads, width = round_up(D, kPanel);
  const int row0 = tile * a.tile_rows,
            rows = row0 + a.tile_rows < a.rows ? a.tile_rows : a.rows - row0;
  const size_t head_offset = a.layer_offset + kv_head * CacheLayout(D, P::kDtype).head_bytes();
  const auto* q =
      static_cast<const typename P::X*>(a.q) + (size_t(kv_head) * a.rows + row0) * G * width;
  float out[kMaxQueries * kMaxHead];
  Running run;
  run.out = out;
  for (int i = 0; i < rows * G; ++i) run.max[i] = kNothing, run.sum[i] = 0;
  for (int i = 0; i < rows * G * width; ++i) out[i] = 0;

  int first = INT32_MAX, last = -1;  // blocks that some row of the tile sees
  for (int r = 0; r < rows; ++r) {
    const int position = a.positions[row0 + r];
    const int oldest =
        a.window > 0 && position >= a.window ? (position - a.window + 1) / kBlock : 0;
    first = oldest < first ? oldest : first;
    last = position / kBlock > last ? position / kBlock : last;
  }
  Inner<P> inner;
  Span seen[kMaxQueries];
  for (int b = first; b <= last; ++b) {
    for (int i = 0; i < rows * G; ++i) seen[i] = visible(a.positions[row0 + i / G], b, a.window);
    auto block_of = [&](int r) {
      return b * kBlock <= a.positions[row0 + r] && seen[r * G].begin < seen[r * G].end
                 ? a.tables[size_t(a.sequences[row0 + r]) * a.table_stride + b]
                 : -1;
    };
    for (int r = 0; r < rows;) {  // runs of rows that read the same physical block
      const int32_t block = block_of(r);
      int end = r + 1;
      while (end < rows && block_of(end) == block) ++end;
      if (block >= 0)
        visit<P>(inner, a, q, a.pool + size_t(block) * a.block_bytes + head_offset, run, r * G,
                 (end - r) * G, seen);
      r = end;
    }
  }
  for (int i = 0; i < rows * G; ++i) {
    auto* to = static_cast<typename P::X*>(a.out) + size_t(row0 + i / G) * a.out_stride +
               (kv_head * G + i % G) * D;
    const float scale = 1.f / run.sum[i];
    for (int d = 0; d < D; ++d) to[d] = P::to_x(out[i * width + d] * scale);
  }
}

}  // namespace urial::cpu::URIAL_RUNG
