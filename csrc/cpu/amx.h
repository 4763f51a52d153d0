// The inner kernel on AMX: tiles of 16 rows x 16 columns, 32 k an instruction. A packed panel
// already is two tiles side by side.
//
// A tile instruction adds a whole group of 32 k in an order of its own, the same for every row, so
// this rung uses it for one row as for a thousand: another instruction for small batches would
// round differently.
#pragma once
#include "policy.h"

namespace urial::cpu::URIAL_RUNG {

template <>
struct Inner<Bf16> {
  static constexpr int kRows = 32, kTileRows = 16;
  static constexpr bool kHasRoom = true;  // see matmul.h
  const void* next = nullptr;
  Fetch fetch;

  ~Inner() {
    if (configured_) _tile_release();
  }

  void operator()(int m, const uint16_t* x, ptrdiff_t x_stride, const uint16_t* w, int steps,
                  bool more, float* out, ptrdiff_t out_stride) {
    (*this)(m, x, x_stride, w, steps, more, out, out_stride, [] {});
  }

  // out[m][0..31] = sum over k of x[m][k] w[k][0..31] for m <= 32 rows, and what stands in out with
  // `more`: tiles 0-3 sums, 4-5 rows, 6-7 columns. `meanwhile` is called with each group of 32 k.
  template <class Meanwhile>
  void operator()(int m, const uint16_t* x, ptrdiff_t x_stride, const uint16_t* w, int steps,
                  bool more, float* out, ptrdiff_t out_stride, Meanwhile&& meanwhile) {
    configure(m);
    settle();
    const ptrdiff_t x_bytes = x_stride * 2, out_bytes = out_stride * 4;
    constexpr int kW = kPanel * 2 * 2;              // bytes from one pair of k to the next
    constexpr int kGroup = kTileRows * kPanel * 2;  // elements of w in a group of 32 k
    const uint16_t* lower = x + kTileRows * x_stride;
    float* lower_out = out + kTileRows * out_stride;
    const int groups = steps / kTileRows;
    Fetch coming = fetch;
    coming.lines = (fetch.lines + groups - 1) / groups;
    fetch.at += fetch.lines * 64;
    if (more) {
      _tile_loadd(0, out, out_bytes);
      _tile_loadd(1, out + kTileRows, out_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    if (m > kTileRows) {
      if (more) {
        _tile_loadd(2, lower_out, out_bytes);
        _tile_loadd(3, lower_out + kTileRows, out_bytes);
      } else {
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int g = 0; g < groups; ++g, x += kPanel, lower += kPanel, w += kGroup) {
        next ? stream(groups, g) : coming.some<Isa>(coming.lines);
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, w, kW);
        _tile_loadd(7, w + kPanel, kW);
        _tile_loadd(5, lower, x_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        meanwhile();
      }
      _tile_stored(2, lower_out, out_bytes);
      _tile_stored(3, lower_out + kTileRows, out_bytes);
    } else {
      for (int g = 0; g < groups; ++g, x += kPanel, w += kGroup) {
        next ? stream(groups, g) : coming.some<Isa>(coming.lines);
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, w, kW);
        _tile_loadd(7, w + kPanel, kW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        meanwhile();
      }
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + kTileRows, out_bytes);
  }

  template <class Tile>
  static void tiles(int rows, Tile&& f) {
    for (int row = 0; row < rows; row += kRows) f(row, rows - row < kRows ? rows - row : kRows);
  }

 private:
  struct Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  };

  void configure(int m) {
    if (m == configured_) return;
    const int upper = m < kTileRows ? m : kTileRows, lower = m > kTileRows ? m - kTileRows : 0;
    Config c;
    const int rows[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
    for (int t = 0; t < 8; ++t) c.rows[t] = uint8_t(rows[t]), c.bytes[t] = rows[t] ? 64 : 0;
    settle();
    _tile_loadconfig(&c);
    configured_ = m;
  }

  // The compiler does not see what tile instructions read: stores that stand before must be done.
  static void settle() { __asm__ volatile("" ::: "memory"); }

  // What comes next, at eight places at once: a processor fetches ahead by itself within a page
  // only, and this hides the waits at the pages' beginnings.
  void stream(int groups, int g) const {
    constexpr int kStreams = 8, kBytes = 2 * kTileRows * 64 / kStreams;  // of each with a group
    const char* at = static_cast<const char*>(next) + g * kBytes;
    for (int s = 0; s < kStreams; ++s, at += groups * kBytes)
      for (int line = 0; line < kBytes; line += 64) Isa::prefetch_far(at + line);
  }

  int configured_ = 0;
};

}  // namespace urial::cpu::URIAL_RUNG
