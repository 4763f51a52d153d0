// AVX-512: 16 lanes.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace urial::cpu::URIAL_RUNG {

struct Isa {
  using F = __m512;
  static constexpr int W = 16;   // lanes
  static constexpr int NV = 2;   // registers of columns in a micro tile
  static constexpr int MR = 12;  // rows in a micro tile: MR * NV accumulators, and room for weights
  static constexpr int kWideRows = 0;  // NV registers already are a whole panel
  static constexpr float kLeastBits = -200.f;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n an integer
  // Over lanes, halves against halves.
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }
  static int count_greater(F a, F b) {
    return _mm_popcnt_u32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ));
  }
  static int count_equal(F a, F b) { return _mm_popcnt_u32(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)); }
  // Lanes below n of a, the others of b.
  static F keep_first(F a, int n, F b) {
    return _mm512_mask_blend_ps(__mmask16((1u << n) - 1), b, a);
  }
  // Of W consecutive pairs of bf16 the first, or the second, of each as fp32.
  static F first(const uint16_t* p) { return first(_mm512_loadu_si512(p)); }
  static F second(const uint16_t* p) { return second(_mm512_loadu_si512(p)); }
  static F first(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static F second(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))));
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void prefetch_far(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
};

}  // namespace urial::cpu::URIAL_RUNG
