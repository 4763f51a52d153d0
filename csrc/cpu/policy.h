// How a packed dtype meets an instruction set. A policy says what an activation is (X), what a
// weight is (Wt), how many k one step takes, in how many parts it takes them one after the other,
// and how products are added up: Sum is one vector of columns, which begins at 0 or at what stands
// in memory, adds a part's product, and may do something after each kGroup steps (micro.h); kSums
// is how many of them fit in registers. Everything else is written once, against a policy.
//
// What an Isa must offer (isa_*.h): F, a vector of W floats; a micro tile of MR rows by NV vectors
// of columns, whose sums fit in registers, and kWideRows, up to how many rows a whole panel of
// columns does; zero, set1, load and store at any address; add, sub, mul, div, fma (a * b + c),
// round (to nearest, ties to even), scale2 (a * 2^n, n an integer; 0 for n = kLeastBits); max and
// min, which give their second operand where one is NaN; sum and largest over lanes, halves against
// halves; count_greater and count_equal, in how many lanes; keep_first (the lanes of a below n,
// those of b from there); first and second, of each of W pairs of bf16; prefetch, into the first
// cache, and prefetch_far, into the second.
#pragma once
#include "numbers.h"
#include "types.h"

namespace urial::cpu::URIAL_RUNG {

// One product after the other, in k's order.
template <class P>
struct InOrder {
  typename P::F sum;

  void begin(const float* at, bool more) { sum = more ? P::load(at) : P::zero(); }
  template <class X, class W>
  void add(X x, W w, int) {
    sum = P::dot(sum, x, w);
  }
  void group(float*) {}
  void end(float* at) const { P::store(at, sum); }
};

// fp32 weights and activations.
struct F32 : Isa {
  using X = float;
  using Wt = float;
  static constexpr Dtype kDtype = Dtype::kF32;
  static constexpr int kStep = 1, kParts = 1;
  static F weights(const Wt* p, int) { return load(p); }
  static F broadcast(const X* p, int) { return set1(*p); }
  static F dot(F acc, F x, F w) { return fma(x, w, acc); }
  using Sum = InOrder<F32>;
  static constexpr int kSums = MR * NV;
  static void store_x(X* p, F v) { store(p, v); }
  static X to_x(float v) { return v; }
  static Wt to_wt(float v) { return v; }
};

#ifdef URIAL_BF16_DOT
// bf16 weights and activations, two k an instruction.
struct Bf16 : Isa {
  using X = uint16_t;
  using Wt = uint16_t;
  static constexpr Dtype kDtype = Dtype::kBf16;
  static constexpr int kStep = 2, kParts = 1;
  static __m512bh weights(const Wt* p, int) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512bh broadcast(const X* p, int) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static F dot(F acc, __m512bh x, __m512bh w) { return _mm512_dpbf16_ps(acc, x, w); }
  using Sum = InOrder<Bf16>;
  static constexpr int kSums = MR * NV;
  static void store_x(X* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
  }
  static X to_x(float v) { return f32_to_bf16(v); }
  static Wt to_wt(float v) { return f32_to_bf16(v); }
};
#else
// bf16 weights widened on the way in; activations stay fp32, which costs nothing and rounds less.
struct Bf16 : Isa {
  using X = float;
  using Wt = uint16_t;
  static constexpr Dtype kDtype = Dtype::kBf16;
  static constexpr int kStep = 2, kParts = 2;
  static F weights(const Wt* p, int part) { return part == 0 ? first(p) : second(p); }
  static F broadcast(const X* p, int part) { return set1(p[part]); }
  static F dot(F acc, F x, F w) { return fma(x, w, acc); }
  using Sum = InOrder<Bf16>;
  static constexpr int kSums = MR * NV;
  static void store_x(X* p, F v) { store(p, v); }
  static X to_x(float v) { return v; }
  static Wt to_wt(float v) { return f32_to_bf16(v); }
};
#endif

// e^x for x <= 88, to within 1.25 units in the last place; below -87 the result is about 1e-38,
// never 0. The bounds stand first because max(a, b) and min(a, b) give b where one is NaN: a NaN
// must come out as a NaN.
inline Isa::F exp(Isa::F x) {
  using I = Isa;
  x = I::min(I::set1(88.f), I::max(I::set1(-87.f), x));
  const I::F n = I::round(I::mul(x, I::set1(1.44269504f)));
  // ln 2 in two parts: the first has few bits, so that n times it is exact.
  I::F r = I::fma(n, I::set1(-0.693359375f), x);
  r = I::fma(n, I::set1(2.12194440e-4f), r);
  constexpr float kTaylor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
  I::F p = I::set1(1.f / 5040);
  for (const float c : kTaylor) p = I::fma(p, r, I::set1(c));
  return I::scale2(p, n);
}

// 2^x for x <= 0, to within 2.1 units in the last place; exactly 1 for 0, exactly 0 from
// kLeastBits down (-127, or a little less), and a NaN for a NaN. The polynomial is the one of its
// degree, with the value 1 at 0, whose relative error on [-1/2, 1/2] is the least: 9.2e-8.
inline Isa::F exp2(Isa::F x) {
  using I = Isa;
  x = I::max(I::set1(I::kLeastBits), x);
  const I::F n = I::round(x), r = I::sub(x, n);
  constexpr float kBest[] = {9.67151264e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.f};
  I::F p = I::set1(1.32647272e-3f);
  for (const float c : kBest) p = I::fma(p, r, I::set1(c));
  return I::scale2(p, n);
}

// x / (1 + e^-x)
inline Isa::F silu(Isa::F x) {
  using I = Isa;
  return I::div(x, I::add(I::set1(1.f), exp(I::sub(I::zero(), x))));
}

}  // namespace urial::cpu::URIAL_RUNG
