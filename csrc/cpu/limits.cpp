// One loop for each way to multiply, written with the same instruction as the rung of that name and
// nothing else in it. The functions are compiled for their instruction set one by one, so that this
// file's other code runs anywhere.
#include "limits.h"

#include <chrono>
#include <cstring>
#include <functional>

#include "memory.h"
#include "pool.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace urial::cpu {
namespace {

constexpr long kSteps = 200000;  // of a loop in one pass: some tenths of a millisecond
constexpr int kChains = 10;      // independent sums: more than the latency of any instruction needs

// What is computed from here on cannot be left out.
template <class T>
URIAL_INLINE void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

// kChains sums in registers, `next` applied to each (it is called `a` there).
#define URIAL_LOOP(Vector, zero, next)                                    \
  Vector sums[kChains], out[kChains];                                     \
  for (Vector& a : sums) a = zero;                                        \
  for (long step = 0; step < kSteps; ++step)                              \
    for (Vector& a : sums) a = next;                                      \
  for (int chain = 0; chain < kChains; ++chain) out[chain] = sums[chain]; \
  keep(out);

typedef float Lanes4 __attribute__((vector_size(16)));

void portable_multiply_add() {
  Lanes4 x = {1.f, 1.f, 1.f, 1.f}, w = x;
  asm volatile("" : "+m"(x), "+m"(w));  // else the product would be made once
  URIAL_LOOP(Lanes4, Lanes4{}, a * x + w)
}

#ifdef URIAL_HAVE_AVX2
__attribute__((target("avx2,fma"))) void avx2_multiply_add() {
  const __m256 x = _mm256_set1_ps(1.f);
  URIAL_LOOP(__m256, _mm256_setzero_ps(), _mm256_fmadd_ps(x, x, a))
}
#endif

#ifdef URIAL_HAVE_AVX512
__attribute__((target("avx512f"))) void avx512_multiply_add() {
  const __m512 x = _mm512_set1_ps(1.f);
  URIAL_LOOP(__m512, _mm512_setzero_ps(), _mm512_fmadd_ps(x, x, a))
}
#endif

#ifdef URIAL_HAVE_AVX512_BF16
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) void avx512_dot_bf16() {
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1
  URIAL_LOOP(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(a, x, x))
}
#endif

#ifdef URIAL_HAVE_AMX_BF16
constexpr int kTileRows = 16, kTileBytes = 64, kTileSums = 6;

// Tiles 0-5 are sums, 6 and 7 what is multiplied.
__attribute__((target("amx-tile,amx-bf16"))) void amx_dot_bf16() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; ++t) config.rows[t] = kTileRows, config.bytes[t] = kTileBytes;
  keep(config);               // the intrinsic tells the compiler of its first bytes only
  _tile_loadconfig(&config);  // and all tiles are zero
  for (long step = 0; step < kSteps; ++step) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
}
#endif

struct Loop {
  void (*run)();
  double operations;  // of one thread in one run
};

constexpr double per_run(int sums, int products) { return 2.0 * kSteps * sums * products; }

Loop loop_of(const std::string& isa, Dtype dtype) {
  if (!find_kernels(isa.c_str(), dtype)) return {nullptr, 0};
#ifdef URIAL_HAVE_AMX_BF16
  if (isa == "amx_bf16" && dtype == Dtype::kBf16)
    return {amx_dot_bf16, per_run(kTileSums, kTileRows * (kTileBytes / 4) * (kTileBytes / 2))};
#endif
#ifdef URIAL_HAVE_AVX512_BF16
  if (isa == "avx512_bf16" && dtype == Dtype::kBf16) return {avx512_dot_bf16, per_run(kChains, 32)};
#endif
#ifdef URIAL_HAVE_AVX512
  if (isa.rfind("avx512", 0) == 0 || isa == "amx_bf16")
    return {avx512_multiply_add, per_run(kChains, 16)};
#endif
#ifdef URIAL_HAVE_AVX2
  if (isa == "avx2") return {avx2_multiply_add, per_run(kChains, 8)};
#endif
  return {portable_multiply_add, per_run(kChains, 4)};
}

typedef uint64_t Line __attribute__((vector_size(64)));
// A thread reads at several places in turn: the processor fetches ahead by itself within a page
// only, so one place alone waits at the start of each page. Measured on a Xeon with AMX: 31 GB/s at
// one place, 40 at 8; more places, or another distance, change little.
constexpr int kStreams = 8;
constexpr int kAhead = 16;  // lines

// kStreams * `lines` of them.
URIAL_INLINE void read_lines(const Line* from, size_t lines) {
  Line sums[kStreams] = {};
  for (size_t i = 0; i < lines; ++i)
    for (int s = 0; s < kStreams; ++s) {
      __builtin_prefetch(from + s * lines + i + kAhead);
      sums[s] |= from[s * lines + i];
    }
  Line out = sums[0];
  for (const Line& sum : sums) out |= sum;
  keep(out);
}

void read_portable(const Line* from, size_t lines) { read_lines(from, lines); }

#ifdef URIAL_HAVE_AVX512
__attribute__((target("avx512f"))) void read_avx512(const Line* from, size_t lines) {
  read_lines(from, lines);
}
#endif

// Seconds of the best pass that a team makes of `pass`, among those of about `seconds`.
double best(int threads, double seconds, const std::function<void(int)>& pass) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  Team team(threads);
  team.run(pass);
  const auto begin = Clock::now();
  double least = 1e300;
  do {
    const auto start = Clock::now();
    team.run(pass);
    const double taken = since(start);
    least = taken < least ? taken : least;
  } while (since(begin) < seconds);
  return least;
}

}  // namespace

double read_bandwidth(int threads, double seconds, size_t bytes) {
  const Memory memory(bytes);
  std::memset(memory.data(), 1, bytes);  // only now there are pages behind it
  auto* read = read_portable;
#ifdef URIAL_HAVE_AVX512
  if (find_kernels("avx512", Dtype::kF32)) read = read_avx512;
#endif
  const size_t lines = bytes / sizeof(Line) / threads / kStreams;
  const double taken = best(threads, seconds, [&](int thread) {
    read(memory.as<Line>() + thread * lines * kStreams, lines);
  });
  return double(lines * kStreams * threads) * sizeof(Line) / taken;
}

double arithmetic_peak(const std::string& isa, Dtype dtype, int threads, double seconds) {
  const Loop loop = loop_of(isa, dtype);
  if (!loop.run) return 0;
  return loop.operations * threads / best(threads, seconds, [&](int) { loop.run(); });
}

}  // namespace urial::cpu
