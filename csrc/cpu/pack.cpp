#include "pack.h"

#include "numbers.h"

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

template <class Read>
void pack_as(const void* source, int begin, int end, const Packed& to, Columns columns) {
  const auto* rows = static_cast<const typename Read::Element*>(source);
  for (int i = begin; i < end; ++i) {
    const auto* row = rows + size_t(i) * to.k;
    const int column = columns.of(i);
    char* panel = static_cast<char*>(to.data) + column / kPanel * to.panel_bytes();
    if (to.dtype == Dtype::kF32) {
      float* out = reinterpret_cast<float*>(panel) + column % kPanel;
      for (int k = 0; k < to.k; ++k) out[size_t(k) * kPanel] = Read::f32(row[k]);
    } else {
      uint16_t* out = reinterpret_cast<uint16_t*>(panel) + column % kPanel * 2;
      for (int k = 0; k < to.k; ++k) out[size_t(k / 2) * kPanel * 2 + k % 2] = Read::bf16(row[k]);
    }
  }
}

}  // namespace

void pack_rows(const void* source, Source type, int begin, int end, const Packed& to,
               Columns columns) {
  switch (type) {
    case Source::kBf16:
      return pack_as<ReadBf16>(source, begin, end, to, columns);
    case Source::kF16:
      return pack_as<ReadF16>(source, begin, end, to, columns);
    case Source::kF32:
      return pack_as<ReadF32>(source, begin, end, to, columns);
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
