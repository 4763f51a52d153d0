// The inner kernel on AMX: tiles of 16 rows x 16 columns, 32 k an instruction. A packed panel
// already is two tiles side by side.
//
// A tile instruction adds the even and the odd k of a group of 32 by themselves, each with a fused
// multiply-add, then both, then what stood there, and takes denormal numbers for zero (its
// description in Intel's Software Developer's Manual). That can be said in vector instructions bit
// for bit, and few rows are: they come at the speed of the memory, for which a tile load is no
// help.
#pragma once
#include "micro.h"

namespace urial::cpu::URIAL_RUNG {

// The sums of a tile instruction, for the inner kernel of vectors. The running sum stays in memory:
// it is needed once a group.
struct TileOrder : Isa {
  using X = uint16_t;
  using Wt = uint16_t;
  static constexpr int kStep = 2, kParts = 2;
  static constexpr int kSums = 12;  // of two registers each
  static F weights(const Wt* p, int part) { return part == 0 ? first(p) : second(p); }
  // Of the pair at p, one: broadcast from memory, then as a weight.
  static F broadcast(const X* p, int part) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    const __m512i both = _mm512_set1_epi32(pair);
    return part == 0 ? first(both) : second(both);
  }

  struct Sum {
    F even, odd;

    void begin(float* at, bool more) {
      if (!more) store(at, zero());
      even = odd = zero();
    }
    void add(F x, F w, int part) { (part == 0 ? even : odd) = fma(x, w, part == 0 ? even : odd); }
    void group(float* at) {
      store(at, Isa::add(load(at), Isa::add(even, odd)));
      even = odd = zero();
    }
    void end(float*) const {}
  };
};

// Denormal numbers are zero, as operands and as results, as long as this lives.
class NoDenormals {
 public:
  NoDenormals() : before_(_mm_getcsr()) {
    constexpr unsigned kFlush = 0x8000, kAreZero = 0x0040;
    set(before_ | kFlush | kAreZero);
  }
  ~NoDenormals() { set(before_); }

 private:
  // What is computed from memory and goes to memory stays on its side of this.
  static void set(unsigned control) { __asm__ volatile("ldmxcsr %0" : : "m"(control) : "memory"); }
  const unsigned before_;
};

template <>
struct Inner<Bf16> {
  static constexpr int kRows = 32, kTileRows = 16;
  static constexpr bool kHasRoom = true;  // see matmul.h
  Fetch fetch;

  ~Inner() {
    if (configured_) _tile_release();
  }

  static constexpr int at_once(int m) { return together<TileOrder>(m); }

  void panels(int m, const uint16_t* x, ptrdiff_t x_stride, const Panels<uint16_t>& w, int steps,
              const Ahead& next, bool more, const Sums& out) {
    panels(m, x, x_stride, w, steps, next, more, out, [] {});
  }
  // `meanwhile` is called with each group of 32 k that tiles multiply.
  template <class Meanwhile>
  void panels(int m, const uint16_t* x, ptrdiff_t x_stride, const Panels<uint16_t>& w, int steps,
              const Ahead& next, bool more, const Sums& out, Meanwhile&& meanwhile) {
    if (m <= kFewRows && (w.count > 1 || next.at)) {
      const NoDenormals as_tiles_do;
      return few(m, x, x_stride, w, steps, next, more, out);
    }
    for (int p = 0; p < w.count; ++p)
      multiply(m, x, x_stride, w.at + p * w.stride, steps,
               next.at ? static_cast<const char*>(next.panel(p)) : nullptr, more, out.from(p).at,
               out.row, meanwhile);
  }

  template <class Tile>
  static void tiles(int rows, Tile&& f) {
    for (int row = 0; row < rows; row += kRows) f(row, rows - row < kRows ? rows - row : kRows);
  }

 private:
  // The most rows that take two panels at once. For a panel alone that lies in a cache, tiles are
  // the faster way, whose bits are the same.
  static constexpr int kFewRows = 3;
  static_assert(together<TileOrder>(kFewRows) > 1 && together<TileOrder>(kFewRows + 1) == 1);

  // A function of its own: nothing in it may be computed before NoDenormals begins or after it
  // ends.
  __attribute__((noinline)) static void few(int m, const uint16_t* x, ptrdiff_t x_stride,
                                            const Panels<uint16_t>& w, int steps, const Ahead& next,
                                            bool more, const Sums& out) {
    micro_rows<TileOrder, kFewRows>(m, x, x_stride, w, steps, next, more, out);
  }

  // One panel: tiles 0-3 sums, 4-5 rows, 6-7 columns. Asks for what is at `next`.
  template <class Meanwhile>
  void multiply(int m, const uint16_t* x, ptrdiff_t x_stride, const uint16_t* w, int steps,
                const char* next, bool more, float* out, ptrdiff_t out_stride,
                Meanwhile& meanwhile) {
    configure(m);
    settle();
    const ptrdiff_t x_bytes = x_stride * 2, out_bytes = out_stride * 4;
    constexpr int kW = kPanel * 2 * 2;             // bytes from one pair of k to the next
    constexpr int kNext = kTileRows * kPanel * 2;  // elements of w from a group of 32 k to the next
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
      for (int g = 0; g < groups; ++g, x += kPanel, lower += kPanel, w += kNext) {
        next ? stream(next, groups, g) : coming.some<Isa>(coming.lines);
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
      for (int g = 0; g < groups; ++g, x += kPanel, w += kNext) {
        next ? stream(next, groups, g) : coming.some<Isa>(coming.lines);
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
  static void stream(const char* next, int groups, int g) {
    constexpr int kStreams = 8, kBytes = 2 * kTileRows * 64 / kStreams;  // of each with a group
    const char* at = next + g * kBytes;
    for (int s = 0; s < kStreams; ++s, at += groups * kBytes)
      for (int line = 0; line < kBytes; line += 64) Isa::prefetch_far(at + line);
  }

  int configured_ = 0;
};

}  // namespace urial::cpu::URIAL_RUNG
