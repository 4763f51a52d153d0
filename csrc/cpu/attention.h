// Causal attention over the blocks of the cache. Four blocks at absolute multiples of four, 256
// keys, are a unit: it is reduced by itself, and the units are merged in order, so a row's result
// depends on its own keys and their absolute positions alone. Rows beside each other that read the
// same physical block are multiplied with it together: that is how a shared prefix is read once for
// all. Where a call has few rows, threads share out a tile's units and leave each unit's own result
// to be merged by the last of them: the same merges in the same order, so the same bits.
#pragma once
#include <cmath>

#include "micro.h"
#include "softmax.h"

namespace urial::cpu::URIAL_RUNG {

// What a query at `position` sees of a unit.
inline Span visible(int position, int unit, int window) {
  const int oldest = window > 0 && position >= window ? position - window + 1 : 0;
  return Span{oldest, position + 1}.within(unit * kUnitKeys, kUnitKeys);
}

// The queries of one key head in some rows beside each other.
template <class P>
class Tile {
  using Wt = typename P::Wt;

 public:
  Tile(const AttentionArgs& a, int kv_head, int tile)
      : a_(a),
        group_(a.heads / a.kv_heads),
        width_(round_up(a.head_dim, kPanel)),
        kv_head_(kv_head),
        row0_(tile * a.tile_rows),
        rows_(row0_ + a.tile_rows < a.rows ? a.tile_rows : a.rows - row0_),
        bits_(1.44269504f / std::sqrt(float(a.head_dim))),
        layout_(a.head_dim, P::kDtype),
        q_(static_cast<const typename P::X*>(a.q) +
           (size_t(kv_head) * a.rows + row0_) * group_ * width_) {
    for (int r = 0; r < rows_; ++r) {
      const int position = a.positions[row0_ + r];
      const int oldest =
          a.window > 0 && position >= a.window ? (position - a.window + 1) / kUnitKeys : 0;
      first_ = oldest < first_ ? oldest : first_;
      end_ = position / kUnitKeys >= end_ ? position / kUnitKeys + 1 : end_;
    }
  }

  int queries() const { return rows_ * group_; }
  int width() const { return width_; }
  // Units that some row sees: [first(), end()).
  int first() const { return first_; }
  int end() const { return end_; }

  // What the units [begin, end) have for the queries, a unit at a time, in order:
  // found(unit, first query, queries, Weighted).
  template <class Found>
  void visit(int begin, int end, Found&& found) const {
    Inner<P> inner;
    for (int u = begin; u < end; ++u)
      for (int q = 0; q < queries(); q += kQueries) {
        const int count = queries() - q < kQueries ? queries() - q : kQueries;
        reduce(inner, u, q, count, [&](const Weighted& w) { found(u, q, count, w); });
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
  // Queries that are reduced together: whole tiles of the inner kernel, whose scores of a unit fit
  // in the first cache.
  static constexpr int kQueries = Inner<P>::kRows == 32 ? 32 : 24;
  // Rows of the scores, and of the weights in their place, begin in different sets of the first
  // cache.
  static constexpr int kScores = kUnitKeys + 16;
  static constexpr int kWeights = kScores * int(sizeof(float) / sizeof(typename P::X));

  int32_t physical(int row, int block) const {
    return a_.tables[size_t(a_.sequences[row]) * a_.table_stride + block];
  }
  const char* address(int32_t block) const {
    return a_.pool + size_t(block) * a_.block_bytes + a_.layer_offset +
           kv_head_ * layout_.head_bytes();
  }

  // Queries beside each other that read the same physical block, and which of its keys some of them
  // see, in whole panels.
  struct Run {
    int query, queries;
    int slot;  // of the block in its unit
    const char* block;
    Span keys;
  };

  // Calls each(row of the call, begin, end) for the queries [first, first + count) of each row.
  template <class Each>
  void for_rows(int first, int count, Each&& each) const {
    for (int row = first / group_, begin = 0, end; begin < count; begin = end, ++row) {
      end = (row + 1) * group_ - first;
      end = end < count ? end : count;
      each(row0_ + row, begin, end);
    }
  }

  // So few queries that its keys are read at the speed of the memory.
  static bool few(const Run& run) { return Inner<P>::at_once(run.queries) > 1; }

  // The runs of one block among the queries [first, first + count), of which seen[i] is what the
  // i-th sees of the unit; returns how many.
  int runs(int block, const Span* seen, int first, int count, Run* to) const {
    const int slot = block % kUnit;
    int n = 0, last = -1;
    for_rows(first, count, [&](int row, int begin, int end) {
      const Span keys = seen[begin].within(slot * kBlock, kBlock);
      const int32_t mine = keys.empty() ? -1 : physical(row, block);
      if (mine >= 0 && mine == last) {
        Run& run = to[n - 1];
        run.queries = end - run.query;
        run.keys = {keys.begin < run.keys.begin ? keys.begin : run.keys.begin,
                    keys.end > run.keys.end ? keys.end : run.keys.end};
      } else if (mine >= 0) {
        to[n++] = Run{begin, end - begin, slot, address(mine), keys};
      }
      last = mine;
    });
    for (int i = 0; i < n; ++i)
      to[i].keys = {to[i].keys.begin / kPanel * kPanel, round_up(to[i].keys.end, kPanel)};
    return n;
  }

  const Wt* keys(const Run& run) const {
    return reinterpret_cast<const Wt*>(run.block) + size_t(run.keys.begin) * width_;
  }
  const Wt* values(const Run& run) const {
    return reinterpret_cast<const Wt*>(run.block + layout_.key_bytes) + run.keys.begin * kPanel;
  }
  // As far into the values as the run's keys are into the keys.
  const Wt* values_beside(const Run& run) const {
    return reinterpret_cast<const Wt*>(run.block + layout_.key_bytes) +
           size_t(run.keys.begin) * width_;
  }
  // From a panel of 32 keys to the next, and from the values of 32 dimensions to the next.
  ptrdiff_t key_stride() const { return ptrdiff_t(kPanel) * width_; }
  static constexpr ptrdiff_t kValueStride = ptrdiff_t(kPanel) * kBlock;
  Ahead ahead_keys(const Run& run) const {
    return {keys(run), key_stride() * ptrdiff_t(sizeof(Wt))};
  }
  Ahead ahead_values(const Run& run) const {
    return {values(run), kValueStride * ptrdiff_t(sizeof(Wt))};
  }

  // Scores of a run's queries against its keys; `next` is read after them.
  void score(Inner<P>& inner, const Run& run, int first, const Ahead& next, float* scores) const {
    Inner<P>::tiles(run.queries, [&](int row, int rows) {
      const int query = run.query + row;
      inner.panels(
          rows, q_ + size_t(first + query) * width_, width_,
          {keys(run), key_stride(), (run.keys.end - run.keys.begin) / kPanel}, width_ / P::kStep,
          row == 0 ? next : Ahead{}, false,
          {scores + query * kScores + run.slot * kBlock + run.keys.begin, kScores, kPanel});
    });
  }

  // out += a run's weights times its values.
  void weigh(Inner<P>& inner, const Run& run, const typename P::X* weights, const Ahead& next,
             float* out) const {
    Inner<P>::tiles(run.queries, [&](int row, int rows) {
      const int query = run.query + row;
      inner.panels(rows, weights + query * kWeights + run.slot * kBlock + run.keys.begin, kWeights,
                   {values(run), kValueStride, width_ / kPanel},
                   (run.keys.end - run.keys.begin) / P::kStep, row == 0 ? next : Ahead{}, true,
                   {out + query * width_, width_, kPanel});
    });
  }

  // One unit against the queries [first, first + count).
  template <class Found>
  void reduce(Inner<P>& inner, int unit, int first, int count, Found&& found) const {
    alignas(64) float scores[kQueries * kScores], out[kQueries * kMaxHead];
    float max[kQueries], sum[kQueries];
    Span seen[kQueries];
    Run runs[kUnit * kQueries + 1];
    int last = 0, n = 0;
    for_rows(first, count, [&](int row, int begin, int end) {
      const Span span = visible(a_.positions[row], unit, a_.window);
      for (int i = begin; i < end; ++i) seen[i] = span;
      last = span.end > last ? span.end : last;
    });
    for (int b = 0; b * kBlock < last; ++b)
      n += this->runs(unit * kUnit + b, seen, first, count, runs + n);
    for (int i = 0; i < n; ++i) {
      // What other queries of the tile have read before lies in a cache; the rest comes from
      // memory. Few queries read all keys as they come, then all values. More of them are busy
      // with a block long enough for its values to come meanwhile, and the next one's keys.
      const bool fresh = first == 0 || runs[i].queries < count;
      Ahead next;
      if (fresh && few(runs[i])) {
        next = i + 1 < n ? ahead_keys(runs[i + 1]) : ahead_values(runs[0]);
      } else if (fresh) {
        if (i + 1 < n)
          Fetch::of(runs[i + 1].block, layout_.key_bytes, 1)
              .template some<P>(int(layout_.key_bytes / 64));
        next = {values_beside(runs[i]), ptrdiff_t(key_stride() * sizeof(Wt))};
      }
      score(inner, runs[i], first, next, scores);
    }
    const auto row = [&](int i) { return Softmax<P>(scores + i * kScores, seen[i]); };
    for (int i = 0; i < count; ++i) max[i] = seen[i].empty() ? kNothing : row(i).largest();
    for (int i = 0; i < count; ++i) {
      sum[i] = seen[i].empty() ? 0.f : row(i).weights(max[i], bits_);
      if (!seen[i].empty()) max[i] *= bits_;
    }
    const auto* weights = reinterpret_cast<const typename P::X*>(scores);
    for (int i = 0; i < count * width_; ++i) out[i] = 0;
    for (int i = 0; i < n; ++i)
      weigh(inner, runs[i], weights,
            few(runs[i]) && i + 1 < n ? ahead_values(runs[i + 1]) : Ahead{}, out);
    found(Weighted{max, sum, out});
  }

  const AttentionArgs& a_;
  const int group_, width_, kv_head_, row0_, rows_;
  const float bits_;
  const CacheLayout layout_;
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
  tile.visit(tile.first(), tile.end(), [&](int, int query, int count, const Weighted& unit) {
    merge<P>(run.from(query, width), unit, count, width);
  });
  tile.write(run);
}

// Where a unit's result stands until it is merged.
template <class P>
inline Weighted part_result(const AttentionArgs& a, const Tile<P>& tile, int kv_head, int unit) {
  const int queries = tile.queries();
  float* at = a.part_memory + (size_t(kv_head) * a.table_units() + unit) * a.part_floats(queries);
  return {at, at + queries, at + 2 * queries};
}

template <class P>
void attention_part(const AttentionArgs& a, int kv_head, int part) {
  const Tile<P> tile(a, kv_head, 0);
  const int units = tile.end() - tile.first(), width = tile.width();
  const int begin = tile.first() + units * part / a.parts,
            end = tile.first() + units * (part + 1) / a.parts;
  tile.visit(begin, end, [&](int u, int query, int count, const Weighted& unit) {
    const Weighted to = part_result(a, tile, kv_head, u).from(query, width);
    for (int m = 0; m < count; ++m) to.max[m] = unit.max[m], to.sum[m] = unit.sum[m];
    for (int i = 0; i < count * width; i += P::W) P::store(to.out + i, P::load(unit.out + i));
  });
}

template <class P>
void attention_merge(const AttentionArgs& a, int kv_head) {
  const Tile<P> tile(a, kv_head, 0);
  float max[kMaxQueries], sum[kMaxQueries], out[kMaxQueries * kMaxHead];
  const Weighted run{max, sum, out};
  clear(run, tile.queries(), tile.width());
  for (int u = tile.first(); u < tile.end(); ++u)
    merge<P>(run, part_result(a, tile, kv_head, u), tile.queries(), tile.width());
  tile.write(run);
}

}  // namespace urial::cpu::URIAL_RUNG
