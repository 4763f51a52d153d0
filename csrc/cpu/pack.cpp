#include "pack.h"

#include <algorithm>
#include <type_traits>

#include "numbers.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace urial::cpu {
namespace {

struct ReadBf16 {
  using Element = uint16_t;
  static float f32(uint16_t v) { return bf16_to_f32(v); }
  static uint16_t bf16(uint16_t v) { return v; }
};
struct ReadF16 {
  using Element = uint16_t;
  static float f32(uint16_t v) { return f16_to_f32(v); }
  static uint16_t bf16(uint16_t v) { return f32_to_bf16(f16_to_f32(v)); }
};
struct ReadF32 {
  using Element = float;
  static float f32(float v) { return v; }
  static uint16_t bf16(float v) { return f32_to_bf16(v); }
};

// A panel is a transposition of 32-bit words: one fp32, or two bf16 that stand beside each other in
// the row as well. As many words of each row at a time as fill a cache line.
constexpr int kWords = 16;
constexpr int kLine = kWords * 4;  // bytes

// rows x kWords words, the rows `stride` bytes apart -> out [kWords][kPanel], as many columns.
void transpose(const char* in, size_t stride, int rows, char* out) {
  constexpr size_t kStep = kPanel * 4;  // bytes from a word to the next in a panel
  int row = 0;
#if defined(__SSE2__)
  const auto load = [](const char* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  const auto store = [](char* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); };
  for (; row + 4 <= rows; row += 4) {
    for (int word = 0; word < kWords; word += 4) {
      const char* from = in + row * stride + word * 4;
      char* to = out + word * kStep + row * 4;
      const __m128i a = load(from), b = load(from + stride);
      const __m128i c = load(from + 2 * stride), d = load(from + 3 * stride);
      const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
      const __m128i ab_high = _mm_unpackhi_epi32(a, b), cd_high = _mm_unpackhi_epi32(c, d);
      store(to, _mm_unpacklo_epi64(ab, cd));
      store(to + kStep, _mm_unpackhi_epi64(ab, cd));
      store(to + 2 * kStep, _mm_unpacklo_epi64(ab_high, cd_high));
      store(to + 3 * kStep, _mm_unpackhi_epi64(ab_high, cd_high));
    }
  }
#endif
  for (; row < rows; ++row)
    for (int word = 0; word < kWords; ++word)
      std::memcpy(out + word * kStep + row * 4, in + row * stride + word * 4, 4);
}

// Rows of k elements -> columns [column, column + rows) of one panel, whose element is T.
template <class Read, class T>
void pack_tile(const typename Read::Element* source, int rows, int k, char* panel, int column) {
  constexpr int kCount = kLine / sizeof(T);
  constexpr bool kSame =
      std::is_same_v<T, float> ? std::is_same_v<Read, ReadF32> : std::is_same_v<Read, ReadBf16>;
  for (int first = 0; first < k; first += kCount) {
    char* out = panel + size_t(first) * sizeof(T) * kPanel + column * 4;
    const auto* in = source + first;
    if (kSame && first + kCount <= k) {
      transpose(reinterpret_cast<const char*>(in), k * sizeof(T), rows, out);
      continue;
    }
    alignas(16) T block[kPanel][kCount];
    const int count = std::min(kCount, k - first);
    for (int row = 0; row < rows; ++row, in += k) {
      for (int i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<T, float>) {
          block[row][i] = Read::f32(in[i]);
        } else {
          block[row][i] = Read::bf16(in[i]);
        }
      }
      std::fill(block[row] + count, block[row] + kCount, T(0));  // the panel is padded that far
    }
    transpose(reinterpret_cast<const char*>(block), kLine, rows, out);
  }
}

template <class Read>
void pack_as(const void* source, int first, int count, const Packed& to, Columns columns) {
  const auto* rows = static_cast<const typename Read::Element*>(source);
  for (int i = first, end = first + count; i < end;) {
    const int column = columns.of(i), at = column % kPanel;
    const int tile = std::min({end - i, columns.run - i % columns.run, kPanel - at});
    char* panel = static_cast<char*>(to.data) + column / kPanel * to.panel_bytes();
    if (to.dtype == Dtype::kF32) {
      pack_tile<Read, float>(rows, tile, to.k, panel, at);
    } else {
      pack_tile<Read, uint16_t>(rows, tile, to.k, panel, at);
    }
    rows += size_t(tile) * to.k, i += tile;
  }
}

}  // namespace

void pack_rows(const void* source, Source type, int first, int count, const Packed& to,
               Columns columns) {
  switch (type) {
    case Source::kBf16:
      return pack_as<ReadBf16>(source, first, count, to, columns);
    case Source::kF16:
      return pack_as<ReadF16>(source, first, count, to, columns);
    case Source::kF32:
      return pack_as<ReadF32>(source, first, count, to, columns);
  }
}

void unpack_row(const Packed& from, int n, float* out) {
  const char* panel = static_cast<const char*>(from.data) + n / kPanel * from.panel_bytes();
  if (from.dtype == Dtype::kF32) {
    const float* in = reinterpret_cast<const float*>(panel) + n % kPanel;
    for (int k = 0; k < from.k; ++k) out[k] = in[size_t(k) * kPanel];
  } else {
    const uint16_t* in = reinterpret_cast<const uint16_t*>(panel) + n % kPanel * 2;
    for (int k = 0; k < from.k; ++k) out[k] = bf16_to_f32(in[size_t(k / 2) * kPanel * 2 + k % 2]);
  }
}

}  // namespace urial::cpu
