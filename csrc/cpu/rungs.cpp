// Which instruction sets were built, and which of them this machine runs.
#include <cstring>

#include "types.h"

namespace urial::cpu {

#define URIAL_DECLARE(rung) \
  namespace rung {          \
  extern const Kernels bf16_kernels, f32_kernels; \
  }
URIAL_DECLARE(portable)
#ifdef URIAL_HAVE_AVX2
URIAL_DECLARE(avx2)
#endif
#ifdef URIAL_HAVE_AVX512
URIAL_DECLARE(avx512)
#endif
#ifdef URIAL_HAVE_AVX512_BF16
URIAL_DECLARE(avx512_bf16)
#endif

namespace {

struct Rung {
  const Kernels *bf16, *f32;
  bool (*runs)();
};

#if defined(URIAL_HAVE_AVX512) || defined(URIAL_HAVE_AVX512_BF16)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif

const Rung kRungs[] = {
#ifdef URIAL_HAVE_AVX512_BF16
    {&avx512_bf16::bf16_kernels, &avx512_bf16::f32_kernels,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
#endif
#ifdef URIAL_HAVE_AVX512
    {&avx512::bf16_kernels, &avx512::f32_kernels, has_avx512},
#endif
#ifdef URIAL_HAVE_AVX2
    {&avx2::bf16_kernels, &avx2::f32_kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&portable::bf16_kernels, &portable::f32_kernels, [] { return true; }},
};

}  // namespace

const Kernels* find_kernels(const char* isa, Dtype dtype) {
  for (const Rung& r : kRungs)
    if (std::strcmp(r.bf16->isa, isa) == 0 && r.runs()) return dtype == Dtype::kBf16 ? r.bf16 : r.f32;
  return nullptr;
}

int available_isas(const char** names, int capacity) {
  int count = 0;
  for (const Rung& r : kRungs)
    if (r.runs() && count < capacity) names[count++] = r.bf16->isa;
  return count;
}

}  // namespace urial::cpu
