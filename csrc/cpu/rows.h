// Operations on one row: norm, conversion, rotary embedding with the write to the cache, statistics
// of logits.
#pragma once
#include <cmath>

#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

// in and weight are padded with zeros to whole panels.
template <class P>
bool rmsnorm(const float* in, const float* weight, float eps, int n, void* x, float* full) {
  using F = typename P::F;
  const int padded = round_up(n, kPanel);
  F squares = P::zero();
  for (int i = 0; i < padded; i += P::W)
    squares = P::fma(P::load(in + i), P::load(in + i), squares);
  const float mean = P::sum(squares) / float(n);
  const F scale = P::set1(1.f / std::sqrt(mean + eps));
  F finite = P::zero();
  for (int i = 0; i < padded; i += P::W) {
    const F y = P::mul(P::mul(P::load(in + i), scale), P::load(weight + i));
    if (x) P::store_x(static_cast<typename P::X*>(x) + i, y);
    if (full) P::store(full + i, y);
    finite = P::fma(y, P::zero(), finite);
  }
  return mean - mean == 0.f && P::sum(finite) == 0.f;  // false for NaN and for infinity
}

template <class P>
void convert(const float* in, int n, void* x) {
  auto* out = static_cast<typename P::X*>(x);
  int i = 0;
  for (; i + P::W <= n; i += P::W) P::store_x(out + i, P::load(in + i));
  float rest[P::W] = {};
  if (i < n) {
    for (int j = i; j < n; ++j) rest[j - i] = in[j];
    P::store_x(out + i, P::load(rest)), i += P::W;
  }
  for (; i < round_up(n, kPanel); i += P::W) P::store_x(out + i, P::zero());
}

// Half-split rotation of one head: (a, b) -> (a cos - b sin, b cos + a sin) with a, b the two
// halves.
inline void rotate(const float* in, const float* cos, const float* sin, int half, float* out) {
  for (int i = 0; i < half; ++i) {
    const float a = in[i], b = in[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
}

// Finite, and small enough that neither turning a pair nor rounding it to bf16 leaves the range.
template <class P>
inline bool can_be_stored(const float* v, int n) {
  const typename P::F two = P::set1(2.f);
  typename P::F acc = P::zero();  // NaN as soon as one doubled value is not finite
  int i = 0;
  for (; i + P::W <= n; i += P::W) acc = P::fma(P::mul(P::load(v + i), two), P::zero(), acc);
  float rest = P::sum(acc);
  for (; i < n; ++i) rest += v[i] * 2.f * 0.f;
  return rest == 0.f;
}

// A token's place in a block: its keys are a column of a packed matrix with 64 columns and k = D,
// its values one k of a packed matrix with D columns.
template <class P>
struct Slot {
  using Wt = typename P::Wt;
  Wt *keys, *values;
  int width, slot;

  Slot(char* head, const CacheLayout& layout, int padded_head, int at)
      : width(padded_head), slot(at) {
    keys = reinterpret_cast<Wt*>(head) + (size_t(at / kPanel) * width * kPanel) +
           at % kPanel * P::kStep;
    values = reinterpret_cast<Wt*>(head + layout.key_bytes) + at / P::kStep * kPanel * P::kStep +
             at % P::kStep;
  }
  // Fetches all lines that write() will touch: they come one after the other else.
  void prefetch() const {
    for (int d = 0; d < width; d += P::kStep) P::prefetch(keys + size_t(d) * kPanel);
    for (int d = 0; d < width; d += kPanel)
      for (int line = 0; line < int(kPanel * P::kStep * sizeof(Wt)); line += 64)
        P::prefetch(reinterpret_cast<char*>(values + size_t(d) * kBlock) + line);
  }
  // key and value [padded D].
  void write(const float* key, const float* value) const {
    Wt k[kMaxHead], v[kMaxHead];
    for (int d = 0; d < width; ++d) k[d] = P::to_wt(key[d]), v[d] = P::to_wt(value[d]);
    for (int d = 0; d < width; d += P::kStep)
      __builtin_memcpy(keys + size_t(d) * kPanel, k + d, P::kStep * sizeof(Wt));
    for (int panel = 0; panel < width; panel += kPanel)
      for (int d = 0; d < kPanel; ++d) values[size_t(panel) * kBlock + d * P::kStep] = v[panel + d];
  }
};

// Rotates the queries and keys of row t; queries go to the query matrix, keys and values to their
// slot of the cache. False when they are not finite, or so large that they might not be once
// stored: then the slot gets zeros, for a NaN would reach rows that must not even see it (0 * NaN).
template <class P>
bool rope(const RopeArgs& a, int t) {
  const AttentionArgs& c = a.cache;
  const int D = c.head_dim, half = D / 2, G = c.heads / c.kv_heads, position = c.positions[t];
  const float *cos = a.cos + size_t(position) * half, *sin = a.sin + size_t(position) * half;
  const float* in = a.qkv + t * a.stride;
  const int width = round_up(D, kPanel);
  const CacheLayout layout(D, P::kDtype);
  const int32_t block = c.tables[size_t(c.sequences[t]) * c.table_stride + position / kBlock];
  char* base = c.pool + size_t(block) * c.block_bytes + c.layer_offset;
  const auto slot = [&](int h) {
    return Slot<P>(base + h * layout.head_bytes(), layout, width, position % kBlock);
  };
  for (int h = 0; h < c.kv_heads; ++h) slot(h).prefetch();
  const bool sound = can_be_stored<P>(in, (c.heads + 2 * c.kv_heads) * D);
  float turned[kMaxHead] = {}, value[kMaxHead] = {};
  for (int h = 0; h < c.heads; ++h) {
    rotate(in + h * D, cos, sin, half, turned);
    auto* q = static_cast<typename P::X*>(a.q) + ((size_t(h / G) * c.rows + t) * G + h % G) * width;
    for (int d = 0; d < width; d += P::W) P::store_x(q + d, P::load(turned + d));
  }
  for (int h = 0; h < c.kv_heads; ++h) {
    rotate(in + (c.heads + h) * D, cos, sin, half, turned);
    const float* v = in + (c.heads + c.kv_heads + h) * D;
    for (int d = 0; d < D; ++d) turned[d] = sound ? turned[d] : 0.f, value[d] = sound ? v[d] : 0.f;
    slot(h).write(turned, value);
  }
  return sound;
}

template <class P>
TileStats stats(const float* z, const float* other, int n, float z_y) {
  using F = typename P::F;
  TileStats s{};
  const F target = P::set1(z_y);
  F top = P::load(z), finite = P::zero();
  for (int i = 0; i < n; i += P::W) {
    const F v = P::load(z + i);
    top = P::max(top, v);
    finite = P::fma(v, P::zero(), finite);  // NaN as soon as one value is NaN or infinite
    s.greater += P::count_greater(v, target);
    s.equal += P::count_equal(v, target);
  }
  s.max = P::largest(top);
  const float zero = P::sum(finite);
  s.finite = zero == zero;
  const F max = P::set1(s.max), floor = P::set1(-87.f);
  F total = P::zero(), dot = P::zero(), cross = P::zero();
  for (int i = 0; i < n; i += P::W) {
    const F v = P::load(z + i), d = P::max(P::sub(v, max), floor), e = exp(d);
    total = P::add(total, e);
    dot = P::fma(e, d, dot);
    if (other) cross = P::fma(e, P::sub(v, P::load(other + i)), cross);
  }
  s.sum = P::sum(total), s.dot = P::sum(dot), s.cross = P::sum(cross);
  return s;
}

template <class P>
int argmax(const float* z, int n) {
  float best = z[0];
  int at = 0, i = 0;
  for (; i + P::W <= n; i += P::W) {
    if (P::count_greater(P::load(z + i), P::set1(best)) == 0) continue;
    for (int j = i; j < i + P::W; ++j)
      if (z[j] > best) best = z[j], at = j;
  }
  for (; i < n; ++i)
    if (z[i] > best) best = z[i], at = i;
  return at;
}

}  // namespace urial::cpu::URIAL_RUNG
