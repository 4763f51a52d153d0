// The k largest logits of a row, in the order of Entry.
#pragma once
#include <cmath>
#include <cstdint>

#include "rank.h"

namespace urial::cpu {

class TopK {
 public:
  TopK(Entry* entries, int k) : entries_(entries), k_(k) {}  // entries [k], cleared by clear()

  void clear() {
    for (int i = 0; i < k_; ++i) entries_[i] = {-INFINITY, INT32_MAX};
  }
  // Whether a run of values with this maximum can hold an entry.
  bool may_enter(float maximum) const { return k_ > 0 && maximum >= entries_[k_ - 1].value; }

  void add(Entry e) {
    if (k_ == 0 || !e.before(entries_[k_ - 1])) return;
    int i = k_ - 1;
    for (; i > 0 && e.before(entries_[i - 1]); --i) entries_[i] = entries_[i - 1];
    entries_[i] = e;
  }
  void add_all(const float* values, int n, int32_t first_id) {
    for (int i = 0; i < n; ++i) add({values[i], first_id + i});
  }
  const Entry& operator[](int i) const { return entries_[i]; }

 private:
  Entry* entries_;
  int k_;
};

}  // namespace urial::cpu
