#include "attend.h"

#include <algorithm>

namespace urial::cpu {
namespace {

constexpr int kPartsPerThread = 8;

int tiles(const AttentionArgs& a) { return (a.rows + a.tile_rows - 1) / a.tile_rows; }

}  // namespace

int Attend::parts(const AttentionArgs& a) const {
  if (team_.size() == 1 || tiles(a) > 1) return 1;
  const int units = *std::max_element(a.positions, a.positions + a.rows) / kUnitKeys + 1;
  const int wanted = (kPartsPerThread * team_.size() + a.kv_heads - 1) / a.kv_heads;
  return std::min(wanted, units);
}

void Attend::prepare(AttentionArgs& a) {
  if (a.parts == 1) return;
  const int queries = a.rows * (a.heads / a.kv_heads);
  const size_t bytes =
      size_t(a.kv_heads) * a.table_units() * a.part_floats(queries) * sizeof(float);
  if (!done_) done_ = std::make_unique<std::atomic<int>[]>(a.kv_heads);
  for (int h = 0; h < a.kv_heads; ++h) done_[h] = 0;
  a.part_memory = reinterpret_cast<float*>(memory_.at_least(bytes));
}

void Attend::run(const AttentionArgs& a) {
  // From the end, where the large pieces are: in prefill later rows see more keys, and in a batch
  // the later units are those of single sequences, whose blocks come from memory one by one.
  if (a.parts == 1) {
    const int count = tiles(a) * a.kv_heads;
    return team_.queue(
        count, [&](int i) { k_.attention(a, i % a.kv_heads, (count - 1 - i) / a.kv_heads); });
  }
  team_.queue(a.parts * a.kv_heads, [&](int i) {
    const int head = i % a.kv_heads;
    k_.attention_part(a, head, a.parts - 1 - i / a.kv_heads);
    if (done_[head].fetch_add(1, std::memory_order_acq_rel) + 1 < a.parts) return;
    done_[head].store(0, std::memory_order_relaxed);
    k_.attention_merge(a, head);
  });
}

}  // namespace urial::cpu
