#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "head.h"
#include "philox.h"
#include "top_k.h"

namespace urial::cpu {
namespace {

constexpr int kRows = 32;  // rows whose logits are held at once
// e^-40 times any vocabulary is far below 2^-33 of the sum, the end that no draw comes closer to.
constexpr double kNegligible = 40;

int padded_vocab(const Model& m) { return round_up(m.shape().vocab, kPanel); }

// The raw logits of a row, changed in a few places while a token is chosen, then put back.
class Changed {
 public:
  Changed(const SampleArgs& a, int m, float* z) : z_(z) {
    for (int i = a.penalty_offsets[m]; i < a.penalty_offsets[m + 1]; ++i) {
      float& v = keep(a.penalty_ids[i]);
      if (a.penalty_repeats[i]) v = v > 0 ? v / a.repetition[m] : v * a.repetition[m];
      const int count = a.penalty_counts[i];
      if (count > 0) v -= a.frequency[m] * float(count) + a.presence[m];
    }
    for (int i = a.banned_offsets[m]; i < a.banned_offsets[m + 1]; ++i)
      keep(a.banned_ids[i]) = -INFINITY;
  }
  ~Changed() {
    for (auto it = kept_.rbegin(); it != kept_.rend(); ++it) z_[it->id] = it->value;
  }

 private:
  float& keep(int32_t id) {
    kept_.push_back({z_[id], id});
    return z_[id];
  }
  float* z_;
  std::vector<Entry> kept_;
};

// Candidates of one row by falling logit, sorted only as far as they are looked at.
class Candidates {
 public:
  Candidates(const float* z, int vocab, float temperature) : entries_(vocab) {
    for (int v = 0; v < vocab; ++v) entries_[v] = {z[v] / temperature, v};
    max_ = entries_[0].value;
    for (const Entry& e : entries_) max_ = e.value > max_ ? e.value : max_;
  }

  int size() const { return int(entries_.size()); }
  const Entry& at(int i) {
    if (i >= sorted_) {
      const int more = std::min(size(), std::max(256, 4 * sorted_));
      const auto before = [](const Entry& a, const Entry& b) { return a.before(b); };
      std::partial_sort(entries_.begin() + sorted_, entries_.begin() + more, entries_.end(),
                        before);
      sorted_ = more;
    }
    return entries_[i];
  }
  double weight(const Entry& e) const {
    const double below = double(max_) - e.value;
    return below < kNegligible ? std::exp(-below) : 0.;
  }
  double total(int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += weight(count == size() ? entries_[i] : at(i));
    return sum;
  }

 private:
  std::vector<Entry> entries_;
  int sorted_ = 0;
  float max_;
};

// Temperature, top-k, top-p, min-p, one draw: the order that kernels/sample/reference.py spells
// out.
int draw(const SampleArgs& a, int m, const float* z, int vocab) {
  Candidates c(z, vocab, a.temperature[m]);
  const int k = a.top_k[m] > 0 ? std::min(a.top_k[m], vocab) : vocab;
  const double total = c.total(k), nucleus = a.top_p[m] < 1 ? double(a.top_p[m]) * total : INFINITY;
  const double u = (philox(a.seed[m], a.position[m], a.sample[m]) + 0.5) / 4294967296.;
  double kept = total;
  int count = k;
  if (nucleus < INFINITY || a.min_p[m] > 0) {
    kept = 0, count = 0;
    while (count < k &&
           (count == 0 || (kept < nucleus && c.weight(c.at(count)) >= double(a.min_p[m]))))
      kept += c.weight(c.at(count++));
  }
  double reached = 0;
  int last = 0;  // the last with any weight: rounding may leave u * kept just out of reach
  for (int i = 0; i < count; ++i) {
    const double w = c.weight(c.at(i));
    if (w == 0) break;
    reached += w, last = i;
    if (reached > u * kept) break;
  }
  return c.at(last).id;
}

// Everything about row m once its raw logits z [padded vocabulary] are there. False when they are
// not finite, or leave nothing to choose from.
bool choose(const Model& model, const SampleArgs& a, int m, float* z) {
  const int vocab = model.shape().vocab, padded = padded_vocab(model);
  const float temperature = a.temperature[m];
  int token;
  bool possible;  // not so where every id is banned, or a division by the temperature overflowed
  {
    Changed changed(a, m, z);
    token = temperature > 0 ? draw(a, m, z, vocab) : model.kernels().argmax(z, vocab);
    possible = std::isfinite(temperature > 0 ? z[token] / temperature : z[token]);
  }
  std::vector<TileStats> tiles;
  std::vector<Entry> entries(a.top_logprobs);
  TopK best(entries.data(), a.top_logprobs);
  best.clear();
  for (int n = 0; n < padded; n += kTile) {
    const int columns = std::min(kTile, padded - n);
    tiles.push_back(model.kernels().stats(z + n, nullptr, columns, z[token]));
    if (best.may_enter(tiles.back().max)) best.add_all(z + n, columns, n);
  }
  const RowStats row = merge_tiles(tiles.data(), int(tiles.size()));
  a.token_ids[m] = token;
  a.rank[m] = int32_t(row.greater + 1);
  a.logprob[m] = row.logprob(z[token]);
  for (int i = 0; i < a.top_logprobs; ++i) {
    a.top_ids[size_t(m) * a.top_logprobs + i] = best[i].id;
    a.top_values[size_t(m) * a.top_logprobs + i] = row.logprob(best[i].value);
  }
  return row.finite && possible;
}

// Logits of the rows in turn, kRows at a time: each(row, z) on some thread; false marks the row.
template <class Each>
int for_rows(Model& model, const float* hidden, int rows, Each&& each) {
  const int stride = padded_vocab(model), block = std::min(rows, kRows),
            hidden_size = model.shape().hidden;
  char* x = model.activation_memory(block);
  float* z = model.logit_memory(size_t(block) * stride);
  std::vector<char> finite(rows, 1);
  for (int first = 0; first < rows; first += kRows) {
    const int count = std::min(kRows, rows - first);
    model.team().run([&](int thread) {
      model.activations(thread, hidden + size_t(first) * hidden_size, count, x);
      logits(model, thread, x, count, z, stride);
      model.team().each(thread, count, [&](int m) {
        finite[first + m] = each(first + m, z + size_t(m) * stride);
      });
    });
  }
  const auto bad = std::find(finite.begin(), finite.end(), 0);
  return bad == finite.end() ? -1 : int(bad - finite.begin());
}

// Whether nothing asks for more than the largest logit: then they need never stand in memory.
bool plain(const SampleArgs& a) {
  return a.top_logprobs == 0 && a.penalty_offsets[a.rows] == 0 && a.banned_offsets[a.rows] == 0 &&
         std::all_of(a.temperature, a.temperature + a.rows, [](float t) { return t <= 0; });
}

}  // namespace

int next_tokens(Model& model, const SampleArgs& args) {
  if (plain(args)) {
    std::fill_n(args.rank, args.rows, 1);
    return greedy(model, args.hidden, args.rows, args.token_ids, args.logprob);
  }
  return for_rows(model, args.hidden, args.rows,
                  [&](int m, float* z) { return choose(model, args, m, z); });
}

int all_logits(Model& model, const float* hidden, int rows, float* out) {
  const int vocab = model.shape().vocab;
  return for_rows(model, hidden, rows, [&](int m, const float* z) {
    std::memcpy(out + size_t(m) * vocab, z, vocab * sizeof(float));
    bool finite = true;
    for (int v = 0; v < vocab; ++v) finite = finite && std::isfinite(z[v]);
    return finite;
  });
}

}  // namespace urial::cpu
