// The softmax of attention, cut in pieces that may be merged: scores to weights, and sums of
// weighted values that go on.
#pragma once
#include <cmath>

#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

// The maximum of no keys: finite, so that two of them may be subtracted.
constexpr float kNothing = -3.40282347e38f;

// A softmax-weighted sum of values for some queries, not yet divided by `sum`: that of one unit, or
// of all units so far. Weights are 2^(score - max), scores in bits (times log2 e).
struct Weighted {
  float *max, *sum;  // [queries]
  float* out;        // [queries][padded D]

  Weighted from(int query, int width) const {
    return {max + query, sum + query, out + query * width};
  }
};

// The sum of no unit.
inline void clear(const Weighted& w, int queries, int width) {
  for (int i = 0; i < queries; ++i) w.max[i] = kNothing, w.sum[i] = 0;
  for (int i = 0; i < queries * width; ++i) w.out[i] = 0;
}

// Keys of a unit, or of a block: [begin, end).
struct Span {
  int begin, end;

  bool empty() const { return begin >= end; }
  // What of it lies in `size` keys from `first` on, counted from there.
  Span within(int first, int size) const {
    const int from = begin - first, to = end - first;
    return {from > 0 ? from : 0, to < size ? to : size};
  }
};

// Scores of one query, in place -> weights, their maximum and sum. Weights stand where the scores
// did, as activations from the beginning of the row on; where they are smaller than scores, this
// keeps the first cache for what is read next. Scores outside the span may be anything; their
// weights are 0.
template <class P>
class Softmax {
  using F = typename P::F;

 public:
  Softmax(float* scores, Span seen)
      : scores_(scores),
        seen_(seen),
        begin_(seen.begin / P::W * P::W),
        end_(round_up(seen.end, P::W)) {}

  // Of the scores seen; leaves the others of their vectors as minus infinity. Called for some rows
  // before any weight is computed, so that no row has to wait for another's maximum.
  float largest() const {
    const F nothing = P::set1(-INFINITY);
    if (begin_ < seen_.begin)
      P::store(scores_ + begin_,
               P::keep_first(nothing, seen_.begin - begin_, P::load(scores_ + begin_)));
    if (seen_.end < end_)
      P::store(scores_ + end_ - P::W,
               P::keep_first(P::load(scores_ + end_ - P::W), seen_.end - (end_ - P::W), nothing));
    F top = P::load(scores_ + begin_);
    for (int j = begin_ + P::W; j < end_; j += P::W) top = P::max(top, P::load(scores_ + j));
    return P::largest(top);
  }
  // The weights' sum, after largest().
  float weights(float max, float bits) const {
    auto* p = reinterpret_cast<typename P::X*>(scores_);
    const F shift = P::set1(max), factor = P::set1(bits);
    F total = P::zero();
    for (int j = 0; j < begin_; j += P::W) P::store_x(p + j, P::zero());
    for (int j = begin_; j < end_; j += P::W) {
      const F weight = exp2(P::mul(P::sub(P::load(scores_ + j), shift), factor));
      P::store_x(p + j, weight);
      total = P::add(total, weight);
    }
    for (int j = end_; j < kUnitKeys; j += P::W) P::store_x(p + j, P::zero());
    return P::sum(total);
  }

 private:
  float* scores_;
  Span seen_;
  int begin_, end_;  // whole vectors around seen_
};

// run = run and the unit, in that order, for `rows` queries. Where the unit has nothing for a query
// (its max is kNothing), the query keeps its bits.
template <class P>
inline void merge(const Weighted& run, const Weighted& unit, int rows, int width) {
  using F = typename P::F;
  constexpr int kPadded = (kMaxQueries + P::W - 1) / P::W * P::W;
  float old_scale[kPadded], new_scale[kPadded];
  for (int m = 0; m < rows; ++m) {
    const float before = run.max[m], top = unit.max[m] > before ? unit.max[m] : before;
    old_scale[m] = before - top, new_scale[m] = unit.max[m] - top;
    run.max[m] = top;
  }
  for (int m = rows; m < round_up(rows, P::W); ++m) old_scale[m] = new_scale[m] = 0;
  for (int m = 0; m < rows; m += P::W) {
    P::store(old_scale + m, exp2(P::load(old_scale + m)));
    P::store(new_scale + m, exp2(P::load(new_scale + m)));
  }
  for (int m = 0; m < rows; ++m) {
    run.sum[m] = run.sum[m] * old_scale[m] + unit.sum[m] * new_scale[m];
    const F a = P::set1(old_scale[m]), b = P::set1(new_scale[m]);
    const float* from = unit.out + m * width;
    float* to = run.out + m * width;
    for (int d = 0; d < width; d += P::W)
      P::store(to + d, P::fma(P::load(from + d), b, P::mul(P::load(to + d), a)));
  }
}

}  // namespace urial::cpu::URIAL_RUNG
