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

// Every case is computed, and masks choose one: a compiler makes vectors of that.
static inline float f16_to_f32(uint16_t h) {
  const uint32_t bits = uint32_t(h & 0x7fff) << 13, exponent = bits & 0x0f800000;
  // A subnormal is its fraction times 2^-24: the fraction of 2^-14, which is then taken away.
  const uint32_t subnormal = to_bits(from_bits(bits + (113u << 23)) - from_bits(113u << 23));
  const uint32_t small = 0u - (exponent == 0), special = 0u - (exponent == 0x0f800000);
  const uint32_t finite = (subnormal & small) | ((bits + (112u << 23)) & ~small);
  return from_bits(finite | (special & 0x7f800000) | uint32_t(h & 0x8000) << 16);
}

}  // namespace urial::cpu
