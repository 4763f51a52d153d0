// A product of activations with a packed matrix, cut so that what is used again stays in a cache.
#pragma once
#include "micro.h"

namespace urial::cpu::URIAL_RUNG {

// Sums of M rows x 32 columns that are complete, on their way to where they belong.
template <class P>
struct Finished {
  const MatmulArgs* a = nullptr;
  int panel = 0, row = 0, rows = 0;
  const float* sums = nullptr;

  // The next few rows.
  void some(int count) {
    for (; count > 0 && rows > 0; --count, --rows, ++row, sums += kPanel) finish();
  }
  void all() { some(rows); }

 private:
  void finish() {
    using F = typename P::F;
    F y[kPanel / P::W];
    for (int v = 0; v < kPanel / P::W; ++v) {
      y[v] = P::load(sums + v * P::W);
      if (a->bias) y[v] = P::add(y[v], P::load(a->bias + panel * kPanel + v * P::W));
    }
    if (a->epilogue == Epilogue::kSiluMul) {
      auto* out = static_cast<typename P::X*>(a->out) + row * a->out_stride + panel * kPanel / 2;
      constexpr int kHalf = kPanel / 2 / P::W;
      for (int v = 0; v < kHalf; ++v) P::store_x(out + v * P::W, P::mul(silu(y[v]), y[v + kHalf]));
      return;
    }
    float* out = static_cast<float*>(a->out) + row * a->out_stride + panel * kPanel;
    for (int v = 0; v < kPanel / P::W; ++v) {
      if (a->epilogue == Epilogue::kAdd) y[v] = P::add(P::load(out + v * P::W), y[v]);
      P::store(out + v * P::W, y[v]);
    }
  }
};

// What of a product is done together: `rows` whose activations stay in the second cache while all
// panels pass by, and `steps` of k whose part of a panel stays in the first while the rows do.
template <class P>
struct Blocks {
  static constexpr int kMostRows = 512;
  int rows, steps;

  static constexpr bool few(int rows) { return rows <= 3 * Inner<P>::kRows; }
  explicit Blocks(const MatmulArgs& a) {
    constexpr int kNear = 20 << 10, kFar = 800 << 10;  // bytes of a panel; of the activations
    constexpr int kRows = 32;  // a whole number of tiles on every rung that cares
    const int k = round_up(a.w.k, kPanel), fit = kFar / (k * int(sizeof(typename P::X)));
    rows = fit < 2 * kRows ? 2 * kRows : fit > kMostRows ? kMostRows : fit / kRows * kRows;
    const int most = kNear / (kPanel * int(sizeof(typename P::Wt)));
    // A few tiles of rows read a panel as it comes, and have no use for a part of it that stays.
    const int count = few(a.m) ? 1 : (k + most - 1) / most;
    steps = round_up((k + count - 1) / count, kPanel) / P::kStep;
  }
};

// Few rows: several panels at once, at the speed of the memory.
template <class P>
void matmul_few(const MatmulArgs& a, int panel_begin, int panel_end) {
  const auto* x = static_cast<const typename P::X*>(a.x);
  const ptrdiff_t bytes = ptrdiff_t(a.w.panel_bytes()), panel_sums = a.m * kPanel;
  const int most = Inner<P>::at_once(a.m);
  alignas(64) float sums[kTogether * Inner<P>::kRows * kPanel];
  Inner<P> inner;
  // Another thread may have written the activations: all lines at once, not one after the other.
  for (int m = 0; m < a.m; ++m)
    for (int i = 0; i < a.w.k; i += 64 / int(sizeof *x)) P::prefetch(x + m * a.x_stride + i);
  for (int p = panel_begin, count; p < panel_end; p += count) {
    count = panel_end - p < most ? panel_end - p : most;
    const bool over = p <= a.last && a.last < p + count;
    const Ahead next = over ? Ahead{a.then, a.then_stride} : Ahead{a.w.panel(p + count), bytes};
    const auto* w = static_cast<const typename P::Wt*>(a.w.panel(p));
    inner.panels(a.m, x, a.x_stride, {w, bytes / ptrdiff_t(sizeof *w), count}, a.w.steps(), next,
                 false, {sums, kPanel, panel_sums});
    for (int i = 0; i < count; ++i) Finished<P>{&a, p + i, 0, a.m, sums + i * panel_sums}.all();
  }
}

template <class P>
void matmul(const MatmulArgs& a, int panel_begin, int panel_end) {
  constexpr int kRows = Inner<P>::kRows;
  if (Inner<P>::at_once(a.m) > 1) return matmul_few<P>(a, panel_begin, panel_end);
  const auto* x = static_cast<const typename P::X*>(a.x);
  const Blocks<P> blocks(a);
  const int steps = a.w.steps();
  constexpr int kStride = kPanel * P::kStep;  // elements of a panel from one step to the next
  alignas(64) float sums[(Blocks<P>::kMostRows + kRows) * kPanel];
  Inner<P> inner;
  Finished<P> finished;  // of the tile before
  for (int row0 = 0; row0 < a.m; row0 += blocks.rows) {
    const int rows = row0 + blocks.rows < a.m ? blocks.rows : a.m - row0;
    const bool single = rows <= kRows, few = Blocks<P>::few(rows);
    for (int p = panel_begin; p < panel_end; ++p) {
      const auto* w = static_cast<const typename P::Wt*>(a.w.panel(p));
      for (int s = 0; s < steps; s += blocks.steps) {
        const int count = s + blocks.steps < steps ? blocks.steps : steps - s;
        const auto* part = w + size_t(s) * kStride;
        // The first of a few tiles of rows reads at the speed of the memory and asks for the next
        // part as it goes; with many, that comes while they are busy with this one.
        const size_t elements = size_t(count) * kStride;
        const void* next = s + count == steps && p == a.last ? a.then : part + elements;
        inner.fetch = few ? Fetch{} : Fetch::of(next, elements * sizeof(*w), rows / kRows);
        Inner<P>::tiles(rows, [&](int row, int tile_rows) {
          float* tile = sums + (single ? p % 2 * kRows : row) * kPanel;
          inner.panels(tile_rows, x + (row0 + row) * a.x_stride + s * P::kStep, a.x_stride,
                       {part, 0, 1}, count, {few && row == 0 ? next : nullptr}, s > 0,
                       {tile, kPanel, 0}, [&] { finished.some(4); });
          finished.all();
          if (s + count == steps) finished = {&a, p, row0 + row, tile_rows, tile};
          if (!Inner<P>::kHasRoom) finished.all();
        });
      }
    }
  }
  finished.all();
}

}  // namespace urial::cpu::URIAL_RUNG
