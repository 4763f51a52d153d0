// Conversions between the 16-bit formats and fp32, the same on every machine.
//
// static: each rung keeps a copy of its own. Plain inline functions are merged when the program is
// linked, and all would share the copy that was compiled with one rung's flags.
#pragma once
#include <cstdint>
#include <cstring>

namespace urial::cpu {

static inline float from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

static inline uint32_t to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

static inline float bf16_to_f32(uint16_t b) { return from_bits(uint32_t(b) << 16); }

// Round to nearest, ties to even; a NaN stays a NaN.
static inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = to_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0)
    return (sign ? -1.f : 1.f) * float(fraction) *
           from_bits(0x33800000);  // subnormal: fraction * 2^-24
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace urial::cpu
