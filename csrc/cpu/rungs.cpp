// Which instruction sets were built, and which of them this machine runs.
#ifdef URIAL_HAVE_AMX_BF16
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>

#include "types.h"

namespace urial::cpu {

#define URIAL_DECLARE(rung)                       \
  namespace rung {                                \
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
#ifdef URIAL_HAVE_AMX_BF16
URIAL_DECLARE(amx_bf16)
#endif

namespace {

struct Rung {
  const Kernels *bf16, *f32;
  bool (*runs)();
};

#if defined(URIAL_HAVE_AVX512) || defined(URIAL_HAVE_AVX512_BF16) || defined(URIAL_HAVE_AMX_BF16)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

#ifdef URIAL_HAVE_AMX_BF16
// The processor must have the tiles and the kernel must grant them: they are a large register
// state, given on request.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile)) != (kBf16 | kTile))
    return false;
  constexpr long kRequestPermission = 0x1023,
                 kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

const Rung kRungs[] = {
#ifdef URIAL_HAVE_AMX_BF16
    {&amx_bf16::bf16_kernels, &amx_bf16::f32_kernels,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx(); }},
#endif
#ifdef URIAL_HAVE_AVX512_BF16
    {&avx512_bf16::bf16_kernels, &avx512_bf16::f32_kernels,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
#endif
#ifdef URIAL_HAVE_AVX512
    {&avx512::bf16_kernels, &avx512::f32_kernels, has_avx512},
#endif
#ifdef URIAL_HAVE_AVX2
    {&avx2::bf16_kernels, &avx2::f32_kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&portable::bf16_kernels, &portable::f32_kernels, [] { return true; }},
};

}  // namespace

const Kernels* find_kernels(const char* isa, Dtype dtype) {
  for (const Rung& r : kRungs)
    if (std::strcmp(r.bf16->isa, isa) == 0 && r.runs())
      return dtype == Dtype::kBf16 ? r.bf16 : r.f32;
  return nullptr;
}

int available_isas(const char** names, int capacity) {
  int count = 0;
  for (const Rung& r : kRungs)
    if (r.runs() && count < capacity) names[count++] = r.bf16->isa;
  return count;
}

}  // namespace urial::cpu
