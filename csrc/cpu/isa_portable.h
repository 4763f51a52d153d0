// Any processor: the compiler's own vectors of 4 lanes. Multiply and add are rounded one after the
// other.
#pragma once
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace urial::cpu::URIAL_RUNG {

struct Isa {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int W = 4;
  static constexpr int NV = 2;
  static constexpr int MR = 4;
  static constexpr int kWideRows = 1;
  static constexpr float kLeastBits = -127.f;

  static F set1(float v) { return F{v, v, v, v}; }
  static F zero() { return set1(0.f); }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  // Adding and taking away 1.5 * 2^23 leaves the nearest integer, ties to even, for |a| < 2^22.
  static F round(F a) { return (a + 12582912.f) - 12582912.f; }
  static F scale2(F a, F n) {
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    F scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return a * scale;
  }
  static float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float largest(F a) {
    const float even = a[0] > a[2] ? a[0] : a[2], odd = a[1] > a[3] ? a[1] : a[3];
    return even > odd ? even : odd;
  }
  static int count(I mask) { return -(mask[0] + mask[1] + mask[2] + mask[3]); }
  static int count_greater(F a, F b) { return count(a > b); }
  static int count_equal(F a, F b) { return count(a == b); }
  static F keep_first(F a, int n, F b) {
    const I lane = {0, 1, 2, 3};
    return lane < n ? a : b;
  }
  static F first(const uint16_t* p) { return half(p, 0); }
  static F second(const uint16_t* p) { return half(p, 1); }
  static F half(const uint16_t* p, int which) {
    return F{bf16_to_f32(p[which]), bf16_to_f32(p[2 + which]), bf16_to_f32(p[4 + which]),
             bf16_to_f32(p[6 + which])};
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }
  static void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }
};

}  // namespace urial::cpu::URIAL_RUNG
