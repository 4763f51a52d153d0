// The one inner kernel: up to MR rows times a panel of 32 columns, k in order. Weights, keys and
// values all come through here.
#pragma once
#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

// out[m][0..31] = sum over k of x[m][k] w[k][0..31], for M rows. Few rows take a whole panel of
// columns at once: their sums are then enough to hide the latency of an addition, and the panel is
// read in one sweep.
template <class P, int M>
inline void micro(const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w, int steps,
                  ptrdiff_t ahead, float* out, ptrdiff_t out_stride) {
  constexpr int kStride = kPanel * P::kStep;  // elements of w from one step to the next
  constexpr int NV = M <= P::kWideRows ? kPanel / P::W : P::NV;
  for (int column = 0; column < kPanel; column += NV * P::W) {
    typename P::F acc[M][NV];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] = P::zero();
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
                       int steps, ptrdiff_t ahead, float* out, ptrdiff_t out_stride) {
  if (m == M) return micro<P, M>(x, x_stride, w, steps, ahead, out, out_stride);
  if constexpr (M > 1) micro_rows<P, M - 1>(m, x, x_stride, w, steps, ahead, out, out_stride);
}

// The inner kernel as the operations see it. A rung with matrix registers has its own (amx.h).
template <class P>
struct Inner {
  static constexpr int kRows = P::MR;
  // How far from where it reads w the kernel prefetches, in bytes; 0 where w is in a cache already.
  ptrdiff_t ahead = 0;
  // For a matrix that comes from memory: about what one row's kernel reads in the latency of that.
  static constexpr ptrdiff_t kAhead = 1024;

  void operator()(int m, const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w,
                  int steps, float* out, ptrdiff_t out_stride) {
    micro_rows<P>(m, x, x_stride, w, steps, ahead, out, out_stride);
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

// What happens to a finished tile of M rows x 32 columns of panel p.
template <class P>
inline void finish(const MatmulArgs& a, int p, int row, int rows, const float* tile) {
  using F = typename P::F;
  for (int m = 0; m < rows; ++m, tile += kPanel) {
    F y[kPanel / P::W];
    for (int v = 0; v < kPanel / P::W; ++v) {
      y[v] = P::load(tile + v * P::W);
      if (a.bias) y[v] = P::add(y[v], P::load(a.bias + p * kPanel + v * P::W));
    }
    if (a.epilogue == Epilogue::kSiluMul) {
      auto* out = static_cast<typename P::X*>(a.out) + (row + m) * a.out_stride + p * kPanel / 2;
      constexpr int kHalf = kPanel / 2 / P::W;
      for (int v = 0; v < kHalf; ++v) {
        const F gate = y[v], one = P::set1(1.f);
        const F silu = P::div(gate, P::add(one, exp(P::sub(P::zero(), gate))));
        P::store_x(out + v * P::W, P::mul(silu, y[v + kHalf]));
      }
      continue;
    }
    float* out = static_cast<float*>(a.out) + (row + m) * a.out_stride + p * kPanel;
    for (int v = 0; v < kPanel / P::W; ++v) {
      if (a.epilogue == Epilogue::kAdd) y[v] = P::add(P::load(out + v * P::W), y[v]);
      P::store(out + v * P::W, y[v]);
    }
  }
}

template <class P>
void matmul(const MatmulArgs& a, int panel_begin, int panel_end) {
  const auto* x = static_cast<const typename P::X*>(a.x);
  Inner<P> inner;
  float tile[Inner<P>::kRows * kPanel];
  for (int p = panel_begin; p < panel_end; ++p) {
    const auto* w = static_cast<const typename P::Wt*>(a.w.panel(p));
    Inner<P>::tiles(a.m, [&](int row, int rows) {
      inner.ahead = row == 0 ? Inner<P>::kAhead : 0;
      inner(rows, x + row * a.x_stride, a.x_stride, w, a.w.steps(), tile, kPanel);
      finish<P>(a, p, row, rows, tile);
    });
  }
}

}  // namespace urial::cpu::URIAL_RUNG
