// The inner kernels: up to MR rows times panels of 32 columns, k in order. Weights, keys and values
// all come through here.
#pragma once
#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

// Where the inner kernel will read next, as much as now, when that comes from memory: a panel, and
// the others `stride` bytes further each. Null where it is in a cache already.
struct Ahead {
  const void* at = nullptr;
  ptrdiff_t stride = 0;

  const void* panel(int i) const { return static_cast<const char*>(at) + i * stride; }
};

// Panels beside each other, `stride` elements from one to the next.
template <class Wt>
struct Panels {
  const Wt* at;
  ptrdiff_t stride;
  int count;

  Panels from(int i) const { return {at + i * stride, stride, count - i}; }
};

// Where sums go: rows `row` apart, the columns of a panel beside each other, and `panel` from one
// panel's to the next's.
struct Sums {
  float* at;
  ptrdiff_t row, panel;

  Sums from(int p) const { return {at + p * panel, row, panel}; }
};

// Of a panel, so much is asked for ahead, and so many steps of k are done together: 2 KB.
constexpr int kGroup = 16;
// Most panels that few rows are multiplied with at once.
constexpr int kTogether = 3;

// The two cache lines of a step of a panel.
template <class P>
inline void prefetch_step(const typename P::Wt* at) {
  P::prefetch(at);
  P::prefetch(reinterpret_cast<const char*>(at) + 64);
}

// out[m][0..31] = sum over k of x[m][k] w[k][0..31], for M rows; with `more`, the sums go on from
// what stands in out. kAhead: w comes from memory, and so does what stands behind it.
template <class P, int M, bool kAhead>
inline void micro(const typename P::X* x, ptrdiff_t x_stride, const typename P::Wt* w, int steps,
                  bool more, float* out, ptrdiff_t out_stride) {
  constexpr int kStride = kPanel * P::kStep;  // elements of w from one step to the next
  constexpr int NV = M <= P::kWideRows ? kPanel / P::W : P::NV;
  for (int column = 0; column < kPanel; column += NV * P::W) {
    typename P::F acc[M][NV];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < NV; ++v)
        acc[m][v] = more ? P::load(out + m * out_stride + column + v * P::W) : P::zero();
    const typename P::Wt* at = w + column * P::kStep;
    for (int s = 0; s < steps; ++s, at += kStride) {
      if constexpr (kAhead) prefetch_step<P>(at + kGroup * kStride);
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

// The same for few rows and S panels: several streams from memory, which are faster than one
// (docs/performance.md).
template <class P, int M, int S>
inline void micro_few(const typename P::X* x, ptrdiff_t x_stride, const Panels<typename P::Wt>& w,
                      int steps, const Ahead& next, bool more, const Sums& out) {
  constexpr int kStride = kPanel * P::kStep, NV = kPanel / P::W;
  const auto each = [&](auto&& f) {
    for (int m = 0; m < M; ++m)
      for (int p = 0; p < S; ++p)
        for (int v = 0; v < NV; ++v) f(m, p, v, out.at + m * out.row + p * out.panel + v * P::W);
  };
  typename P::Sum sums[M][S][NV];
  each([&](int m, int p, int v, float* at) { sums[m][p][v].begin(at, more); });
  for (int group = 0; group < steps; group += kGroup) {
    const typename P::Wt *at[S], *ahead[S];
    for (int p = 0; p < S; ++p) {
      at[p] = w.at + p * w.stride + group * kStride;
      ahead[p] = group + kGroup < steps ? at[p] + kGroup * kStride
                 : next.at              ? static_cast<const typename P::Wt*>(next.panel(p))
                                        : at[p];
    }
    for (int s = 0; s < kGroup; ++s) {
      for (int p = 0; p < S; ++p) prefetch_step<P>(ahead[p] + s * kStride);
      for (int part = 0; part < P::kParts; ++part) {
        decltype(P::weights(at[0], part)) weights[S][NV];
        for (int p = 0; p < S; ++p)
          for (int v = 0; v < NV; ++v)
            weights[p][v] = P::weights(at[p] + s * kStride + v * P::W * P::kStep, part);
        for (int m = 0; m < M; ++m) {
          const auto b = P::broadcast(x + m * x_stride + (group + s) * P::kStep, part);
          for (int p = 0; p < S; ++p)
            for (int v = 0; v < NV; ++v) sums[m][p][v].add(b, weights[p][v], part);
        }
      }
    }
    each([&](int m, int p, int v, float* at) { sums[m][p][v].group(at); });
  }
  each([&](int m, int p, int v, float* at) { sums[m][p][v].end(at); });
}

// How many panels m >= 1 rows take at once: as many as leave their sums in registers.
template <class P>
constexpr int together(int m) {
  const int fit = P::kSums / (m * (kPanel / P::W));
  return fit > kTogether ? kTogether : fit < 1 ? 1 : fit;
}

// All panels of w for M rows, S at once.
template <class P, int M, int S>
inline void micro_panels(const typename P::X* x, ptrdiff_t x_stride, Panels<typename P::Wt> w,
                         int steps, const Ahead& next, bool more, Sums out) {
  for (; w.count >= S; w = w.from(S), out = out.from(S)) {
    const Ahead beside{w.at + S * w.stride, w.stride * ptrdiff_t(sizeof(typename P::Wt))};
    micro_few<P, M, S>(x, x_stride, w, steps, w.count > S && next.at ? beside : next, more, out);
  }
  if constexpr (S > 1)
    if (w.count > 0) micro_panels<P, M, S - 1>(x, x_stride, w, steps, next, more, out);
}

// All panels of w for any number of rows up to M, by the kernel for exactly that many.
template <class P, int M>
inline void micro_rows(int m, const typename P::X* x, ptrdiff_t x_stride,
                       const Panels<typename P::Wt>& w, int steps, const Ahead& next, bool more,
                       const Sums& out) {
  if (m < M) {
    if constexpr (M > 1) micro_rows<P, M - 1>(m, x, x_stride, w, steps, next, more, out);
  } else if constexpr (together<P>(M) > 1) {
    micro_panels<P, M, together<P>(M)>(x, x_stride, w, steps, next, more, out);
  } else {
    for (int p = 0; p < w.count; ++p)
      (next.at ? micro<P, M, true> : micro<P, M, false>)(x, x_stride, w.at + p * w.stride, steps,
                                                         more, out.from(p).at, out.row);
  }
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
  Fetch fetch;

  // How many panels m rows take at once.
  static constexpr int at_once(int m) { return together<P>(m); }

  // out[m][p] = x[m] w[p] for m <= kRows rows and the panels of w.
  void panels(int m, const typename P::X* x, ptrdiff_t x_stride, const Panels<typename P::Wt>& w,
              int steps, const Ahead& next, bool more, const Sums& out) {
    panels(m, x, x_stride, w, steps, next, more, out, [] {});
  }
  // `meanwhile` is called now and then where kHasRoom.
  template <class Meanwhile>
  void panels(int m, const typename P::X* x, ptrdiff_t x_stride, const Panels<typename P::Wt>& w,
              int steps, const Ahead& next, bool more, const Sums& out, Meanwhile&&) {
    fetch.template some<P>(fetch.lines);
    micro_rows<P, P::MR>(m, x, x_stride, w, steps, next, more, out);
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
