#include "head.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "top_k.h"

namespace urial::cpu {
namespace {

constexpr int kRows = 256;  // rows that share one reading of the head's weights

// The first that is not finite, or -1.
int first_bad(const std::vector<char>& finite) {
  const auto bad = std::find(finite.begin(), finite.end(), 0);
  return bad == finite.end() ? -1 : int(bad - finite.begin());
}

int tiles_of(const Packed& w) { return (w.n + kTile - 1) / kTile; }

// Columns [tile * kTile, ...) of the head as a matrix of their own.
Packed tile_of(const Packed& w, int tile) {
  Packed part = w;
  part.data = const_cast<void*>(w.panel(tile * (kTile / kPanel)));
  part.n = w.n - tile * kTile < kTile ? w.n - tile * kTile : kTile;
  return part;
}

// Logits of one tile; padding columns read as kPadLogit.
void tile_logits(const Model& model, const void* x, int rows, int tile, float* out,
                 ptrdiff_t stride) {
  const Packed w = tile_of(model.head(), tile);
  const MatmulArgs args{x, model.head_stride(), rows, w, nullptr, Epilogue::kStore, out, stride};
  model.kernels().matmul(args, 0, w.panels());
  const int columns = w.panels() * kPanel;
  for (int m = 0; m < rows; ++m)
    for (int n = w.n; n < columns; ++n) out[m * stride + n] = kPadLogit;
}

// One head at work on up to kRows rows.
class Side {
 public:
  Side(Model& model, const ScoreArgs& args, int threads)
      : model_(model), args_(args), threads_(threads), tiles_(tiles_of(model.head())) {
    const int rows = args.rows < kRows ? args.rows : kRows;
    // Its own, and not the model's: the two sides of a comparison may be one model.
    x_ = Memory(size_t(rows) * model.head_stride() * model.kernels().x_bytes);
    z_ = Memory(size_t(threads) * rows * kTile * sizeof(float));
    stats_.resize(size_t(rows) * tiles_);
    target_.resize(rows);
    entries_.resize(size_t(threads) * rows * args.top_k);
    block_rows_ = rows;
  }

  int tiles() const { return tiles_; }
  const float* z(int thread, int row) const {
    return z_.as<float>() + (size_t(thread) * block_rows_ + row) * kTile;
  }

  // Rows [first, first + rows) come next. The caller shares rows out over the team.
  void start(int first, int rows) { first_ = first, rows_ = rows; }

  // The target's own logit, by the same accumulation as in its tile.
  void target(int row) {
    const int y = args_.targets[first_ + row];
    Packed w = model_.head();
    w.data = const_cast<void*>(w.panel(y / kPanel));
    w.n = kPanel;
    float out[kPanel];
    const MatmulArgs args{x(row),  model_.head_stride(), 1,   w,
                          nullptr, Epilogue::kStore,     out, kPanel};
    model_.kernels().matmul(args, 0, 1);
    target_[row] = out[y % kPanel];
    for (int t = 0; t < threads_; ++t) top(t, row).clear();
  }
  void convert(int row) {
    const int hidden = model_.shape().hidden;
    model_.kernels().convert(args_.hidden + size_t(first_ + row) * hidden, hidden, x(row));
  }

  void multiply(int thread, int tile) {
    tile_logits(model_, x(0), rows_, tile, const_cast<float*>(z(thread, 0)), kTile);
  }

  void reduce(int thread, int tile, const Side* other) {
    const int columns = tile_of(model_.head(), tile).panels() * kPanel;
    for (int m = 0; m < rows_; ++m) {
      const float* logits = z(thread, m);
      TileStats& s = stats_[size_t(m) * tiles_ + tile];
      s = model_.kernels().stats(logits, other ? other->z(thread, m) : nullptr, columns,
                                 target_[m]);
      TopK best = top(thread, m);
      if (best.may_enter(s.max)) best.add_all(logits, columns, tile * kTile);
    }
  }

  RowStats merged(int row) const { return merge_tiles(&stats_[size_t(row) * tiles_], tiles_); }

  void write(int row, const RowStats& mine, const RowStats* other) {
    const int m = first_ + row;
    args_.rank[m] = int32_t(mine.greater + 1);
    args_.ties[m] = int32_t(mine.equal - 1);  // the target equals itself
    args_.logprob[m] = mine.logprob(target_[row]);
    args_.entropy[m] = float(mine.entropy);
    if (other) args_.kl[m] = mine.divergence(*other);
    TopK best = top(0, row);
    for (int t = 1; t < threads_; ++t)
      for (int i = 0; i < args_.top_k; ++i) best.add(top(t, row)[i]);
    for (int i = 0; i < args_.top_k; ++i) {
      args_.top_ids[size_t(m) * args_.top_k + i] = best[i].id;
      args_.top_logprobs[size_t(m) * args_.top_k + i] = mine.logprob(best[i].value);
    }
  }

 private:
  char* x(int row) const {
    return x_.data() + size_t(row) * model_.head_stride() * model_.kernels().x_bytes;
  }
  TopK top(int thread, int row) {
    return TopK(entries_.data() + (size_t(thread) * block_rows_ + row) * args_.top_k, args_.top_k);
  }

  Model& model_;
  const ScoreArgs& args_;
  const int threads_, tiles_;
  int first_ = 0, rows_ = 0, block_rows_ = 0;
  Memory x_, z_;  // activations [rows][stride]; logits of a tile [threads][rows][kTile]
  std::vector<TileStats> stats_;  // [rows][tiles]
  std::vector<float> target_;     // [rows]
  std::vector<Entry> entries_;    // [threads][rows][top_k]
};

// The common road: one side, or two that look at each other's tiles.
int run(Team& team, Side** sides, int count, int rows) {
  int bad = -1;
  for (int first = 0; first < rows && bad < 0; first += kRows) {
    const int block = rows - first < kRows ? rows - first : kRows;
    std::vector<char> finite(block, 1);
    for (int i = 0; i < count; ++i) sides[i]->start(first, block);
    team.run([&](int thread) {
      team.share(thread, block, [&](int begin, int end) {
        for (int i = 0; i < count; ++i)
          for (int m = begin; m < end; ++m) sides[i]->convert(m), sides[i]->target(m);
      });
      team.each(thread, sides[0]->tiles(), [&](int tile) {
        for (int i = 0; i < count; ++i) sides[i]->multiply(thread, tile);
        for (int i = 0; i < count; ++i)
          sides[i]->reduce(thread, tile, count == 2 ? sides[1 - i] : nullptr);
      });
      team.share(thread, block, [&](int begin, int end) {
        for (int m = begin; m < end; ++m) {
          RowStats merged[2];
          for (int i = 0; i < count; ++i)
            merged[i] = sides[i]->merged(m), finite[m] &= merged[i].finite;
          for (int i = 0; i < count; ++i)
            sides[i]->write(m, merged[i], count == 2 ? &merged[1 - i] : nullptr);
        }
      });
    });
    for (int m = block - 1; m >= 0; --m)
      if (!finite[m]) bad = first + m;
  }
  return bad;
}

}  // namespace

void Model::activations(int thread, const float* hidden, int rows, void* x) {
  team_.share(thread, rows, [&](int begin, int end) {
    for (int m = begin; m < end; ++m)
      k_.convert(hidden + size_t(m) * shape_.hidden, shape_.hidden,
                 static_cast<char*>(x) + size_t(m) * head_stride() * k_.x_bytes);
  });
}

void logits(Model& model, int thread, const void* x, int rows, float* out, ptrdiff_t out_stride) {
  model.team().each(thread, tiles_of(model.head()), [&](int tile) {
    tile_logits(model, x, rows, tile, out + tile * kTile, out_stride);
  });
}

int greedy(Model& model, const float* hidden, int rows, int32_t* token_ids, float* logprob) {
  const int block = rows < kRows ? rows : kRows, tiles = tiles_of(model.head());
  const Kernels& k = model.kernels();
  Team& team = model.team();
  char* x = model.activation_memory(block);
  float* z = model.logit_memory(size_t(team.size()) * block * kTile);
  std::vector<TileStats> stats(size_t(block) * tiles);
  std::vector<Entry> largest(size_t(team.size()) * block);  // [threads][rows]
  std::vector<char> finite(rows, 1);
  for (int first = 0; first < rows; first += kRows) {
    const int count = rows - first < kRows ? rows - first : kRows;
    team.run([&](int thread) {
      float* mine = z + size_t(thread) * block * kTile;
      Entry* best = &largest[size_t(thread) * block];
      std::fill_n(best, count, Entry{-INFINITY, 0});
      model.activations(thread, hidden + size_t(first) * model.shape().hidden, count, x);
      team.each(thread, tiles, [&](int tile) {
        const int columns = tile_of(model.head(), tile).panels() * kPanel;
        tile_logits(model, x, count, tile, mine, kTile);
        for (int m = 0; m < count; ++m) {
          const float* row = mine + m * kTile;
          const TileStats s = stats[size_t(m) * tiles + tile] = k.stats(row, nullptr, columns, 0.f);
          if (Entry{s.max, tile * kTile}.before(best[m]))
            best[m] = {s.max, tile * kTile + k.argmax(row, columns)};
        }
      });
      team.each(thread, count, [&](int m) {
        Entry best = largest[m];
        for (int t = 1; t < team.size(); ++t) {
          const Entry& other = largest[size_t(t) * block + m];
          if (other.before(best)) best = other;
        }
        const RowStats row = merge_tiles(&stats[size_t(m) * tiles], tiles);
        token_ids[first + m] = best.id;
        logprob[first + m] = row.logprob(best.value);
        finite[first + m] = row.finite;
      });
    });
  }
  return first_bad(finite);
}

int score(Model& model, const ScoreArgs& args) {
  Side side(model, args, model.team().size());
  Side* sides[] = {&side};
  return run(model.team(), sides, 1, args.rows);
}

int compare(Model& base, const ScoreArgs& of_base, Model& aligned, const ScoreArgs& of_aligned) {
  Side a(base, of_base, base.team().size()), b(aligned, of_aligned, base.team().size());
  Side* sides[] = {&a, &b};
  return run(base.team(), sides, 2, of_base.rows);
}

}  // namespace urial::cpu
