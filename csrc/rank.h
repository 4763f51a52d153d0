// What tiles of logits say of a row, and how tiles become a row: the same on every backend.
#pragma once
#include <cmath>
#include <cstdint>

#include "both.h"

namespace urial {

// What a logit of a padding column reads as: the smallest finite number, so above no real one.
constexpr float kPadLogit = -3.40282347e38f;

// What one tile of logits says of one row; tiles are merged in order, in double.
struct TileStats {
  float max, sum, dot;  // sum of e^(z - max), and of e^(z - max) (z - max)
  float cross;          // sum of e^(z - max) (z - other), where two heads are compared
  int32_t greater, equal;
  bool finite;
};

// A logit and whose it is. The order, falling value, then rising id, is total: what comes first
// does not depend on the order in which values arrive, nor on how many threads look at them.
struct Entry {
  float value;
  int32_t id;

  URIAL_BOTH bool before(const Entry& o) const {
    return value > o.value || (value == o.value && id < o.id);
  }
};

// All the tiles of one row, merged in order.
struct RowStats {
  double max, log_sum;    // of z, and of e^(z - max)
  double entropy, cross;  // cross: the mean of z - other under this row's distribution
  int64_t greater, equal;
  bool finite;

  // The maximum goes first: what is left of a large logit then keeps its digits.
  URIAL_BOTH float logprob(float z) const { return float(z - max - log_sum); }
  // KL(this || other), in nats.
  URIAL_BOTH float divergence(const RowStats& other) const {
    return float(cross - (max - other.max) - (log_sum - other.log_sum));
  }
};

// Who merges: one thread by itself. (A warp shares the tiles out over its lanes, see cuda/warp.h.)
struct Alone {
  static constexpr int lane = 0, lanes = 1;
  template <class T>
  URIAL_BOTH T largest(T v) const {
    return v;
  }
  template <class T>
  URIAL_BOTH T sum(T v) const {
    return v;
  }
};

template <class Who = Alone>
URIAL_BOTH RowStats merge_tiles(const TileStats* tiles, int count, Who who = {}) {
  double max = -INFINITY, sum = 0, dot = 0, cross = 0;
  int64_t greater = 0, equal = 0, broken = 0;
  for (int t = who.lane; t < count; t += who.lanes) {
    max = tiles[t].max > max ? tiles[t].max : max;
    greater += tiles[t].greater, equal += tiles[t].equal;
    broken += !tiles[t].finite;
  }
  max = who.largest(max);
  for (int t = who.lane; t < count; t += who.lanes) {
    const double scale = std::exp(tiles[t].max - max);
    sum += scale * tiles[t].sum;
    dot += scale * (tiles[t].dot + (tiles[t].max - max) * tiles[t].sum);
    cross += scale * tiles[t].cross;
  }
  sum = who.sum(sum), dot = who.sum(dot), cross = who.sum(cross);
  RowStats row;
  row.max = max, row.log_sum = std::log(sum);
  row.entropy = row.log_sum - dot / sum;
  row.cross = cross / sum;
  row.greater = who.sum(greater), row.equal = who.sum(equal);
  row.finite = who.sum(broken) == 0;
  return row;
}

}  // namespace urial
