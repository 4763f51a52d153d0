// The one inner kernel: up to MR rows times a panel of 32 columns, k in order. Weights, keys and
// values all come through here.
#pragma once
#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

// out[m][0..31] = sum over k of x[m][k] w[k][0..31], for M rows; with `more`, the sums go on from
// what stands in out. Few rows take a whole panel of columns at once: their sums are then enough to
// hide the latency of an addition, and the panel is read in one sweep.
template <class P, int M>
inline void micro(const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w, int steps,
                  ptrdiff_t ahead, bool more, float* out, ptrdiff_t out_stride) {
  constexpr int kStride = kPanel * P::kStep;  // elements of w from one step to the next
  constexpr int NV = M <= P::kWideRows ? kPanel / P::W : P::NV;
  for (int column = 0; column < kPanel; column += NV * P::W) {
    typename P::F acc[M][NV];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < NV; ++v)
        acc[m][v] = more ? P::load(out + m * out_stride + column + v * P::W) : P::zero();
    const typename P::Wt* at = w + column * P::kStep;
    for (int s = 0; s < steps; ++s, at += kStride) {
      P::prefetch(reinterpret_cast<const char*>(at) + ahead);
      // A part of the step for all rows before the next part: its weights need few registers.
      for (int part = 0; part < P::kParts; ++part) {
        decltype(P::weights(at, part)) weights[NV];
        for (int v = 0; v < NV; ++v) weights[v] = P::weights(at + v * P::W * P::kStep, part);
        for (int m = 0; m < M; ++m) {
          const auto b = P::broadcast(x + m * x_stride + s * P::kStep, part);
          for (int v = 0; v < NV; ++v) acc[m][v] = P::dot(acc[m][v], b, weights[v]);
        }
      }
    }
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < NV; ++v) P::store(out + m * out_stride + column + v * P::W, acc[m][v]);
  }
}

// Any number of rows up to MR, by the kernel for exactly that many.
template <class P, int M = P::MR>
inline void micro_rows(int m, const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w,
                       int steps, ptrdiff_t ahead, bool more, float* out, ptrdiff_t out_stride) {
  if (m == M) return micro<P, M>(x, x_stride, w, steps, ahead, more, out, out_stride);
  if constexpr (M > 1) micro_rows<P, M - 1>(m, x, x_stride, w, steps, ahead, more, out, out_stride);
}

// Memory that the inner kernel brings nearer while it works, a part of it with each call.
struct Fetch {
  const char* at = nullptr;
  int lines = 0;  // of 64 bytes, a call

  static Fetch of(const void* from, size_t bytes, int calls) {
    const size_t lines = bytes / 64;
    return {static_cast<const char*>(from), int((lines + calls - 1) / calls)};
  }
  template <class P>
  void some(int count) {
    for (int i = 0; i < count; ++i) P::prefetch_far(at + i * 64);
    at += count * 64;
  }
};

// The inner kernel as the operations see it. A rung with matrix registers has its own (amx.h).
template <class P>
struct Inner {
  static constexpr int kRows = P::MR;
  // Whether vector instructions run beside the kernel's own, so that a little other work is done
  // for nothing meanwhile.
  static constexpr bool kHasRoom = false;
  // Where the kernel will read next, as much as now, when that comes from memory; null where it is
  // in a cache already.
  const void* next = nullptr;
  Fetch fetch;

  void operator()(int m, const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w,
                  int steps, bool more, float* out, ptrdiff_t out_stride) {
    (*this)(m, x, x_stride, w, steps, more, out, out_stride, [] {});
  }
  // `meanwhile` is called now and then where kHasRoom.
  template <class Meanwhile>
  void operator()(int m, const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w,
                  int steps, bool more, float* out, ptrdiff_t out_stride, Meanwhile&&) {
    fetch.template some<P>(fetch.lines);
    // As far ahead as one row's kernel reads in the latency of the memory, while w is one stream.
    constexpr ptrdiff_t kAhead = 1024;
    micro_rows<P>(m, x, x_stride, w, steps, next ? kAhead : 0, more, out, out_stride);
  }
  // Rows in equal tiles of at most kRows: f(first row, rows).
  template <class Tile>
  static void tiles(int rows, Tile&& f) {
    const int count = (rows + kRows - 1) / kRows;
    for (int t = 0, row = 0; t < count; ++t) {
      const int size = (rows - row) / (count - t);
      f(row, size);
      row += size;
    }
  }
};

}  // namespace urial::cpu::URIAL_RUNG

#ifdef URIAL_AMX
#include "amx.h"
#endif

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

  explicit Blocks(const MatmulArgs& a) {
    constexpr int kNear = 20 << 10, kFar = 800 << 10;  // bytes of a panel; of the activations
    constexpr int kRows = 32;  // a whole number of tiles on every rung that cares
    const int k = round_up(a.w.k, kPanel), fit = kFar / (k * int(sizeof(typename P::X)));
    rows = fit < 2 * kRows ? 2 * kRows : fit > kMostRows ? kMostRows : fit / kRows * kRows;
    const int most = kNear / (kPanel * int(sizeof(typename P::Wt)));
    // One tile of rows has no use for a part of a panel that stays.
    const int count = a.m <= Inner<P>::kRows ? 1 : (k + most - 1) / most;
    steps = round_up((k + count - 1) / count, kPanel) / P::kStep;
  }
};

template <class P>
void matmul(const MatmulArgs& a, int panel_begin, int panel_end) {
  const auto* x = static_cast<const typename P::X*>(a.x);
  const Blocks<P> blocks(a);
  const int steps = a.w.steps();
  constexpr int kRows = Inner<P>::kRows;
  constexpr int kStride = kPanel * P::kStep;  // elements of a panel from one step to the next
  alignas(64) float sums[(Blocks<P>::kMostRows + kRows) * kPanel];
  Inner<P> inner;
  Finished<P> finished;  // of the tile before
  for (int row0 = 0; row0 < a.m; row0 += blocks.rows) {
    const int rows = row0 + blocks.rows < a.m ? blocks.rows : a.m - row0;
    const bool single = rows <= kRows;
    for (int p = panel_begin; p < panel_end; ++p) {
      const auto* w = static_cast<const typename P::Wt*>(a.w.panel(p));
      for (int s = 0; s < steps; s += blocks.steps) {
        const int count = s + blocks.steps < steps ? blocks.steps : steps - s;
        const auto* part = w + size_t(s) * kStride;
        // A single tile of rows reads at the speed of the memory and asks for the next part as it
        // goes; with several, that comes while they are busy with this one.
        const size_t elements = size_t(count) * kStride;
        const void* next = s + count == steps && p == a.last ? a.then : part + elements;
        inner.next = single ? next : nullptr;
        if (!single) inner.fetch = Fetch::of(next, elements * sizeof(*w), rows / kRows);
        Inner<P>::tiles(rows, [&](int row, int tile_rows) {
          float* tile = sums + (single ? p % 2 * kRows : row) * kPanel;
          inner(tile_rows, x + (row0 + row) * a.x_stride + s * P::kStep, a.x_stride, part, count,
                s > 0, tile, kPanel, [&] { finished.some(4); });
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
