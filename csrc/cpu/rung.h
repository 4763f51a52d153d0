// The kernel tables of one instruction set. Included once by each rung_*.cpp, which names the
// namespace (URIAL_RUNG) and includes its Isa first. Such a file is compiled with flags of its own:
// nothing here may instantiate a standard template, or the linker could hand its code to a machine
// that cannot run it.
#pragma once
#include "attention.h"
#include "matmul.h"
#include "rows.h"

namespace urial::cpu::URIAL_RUNG {

template <class P>
constexpr Kernels table(const char* isa) {
  return {isa,
          P::kDtype,
          sizeof(typename P::X),
          matmul<P>,
          Inner<P>::at_once,
          rmsnorm<P>,
          convert<P>,
          rope<P>,
          attention<P>,
          attention_part<P>,
          attention_merge<P>,
          stats<P>,
          argmax<P>};
}

}  // namespace urial::cpu::URIAL_RUNG

#define URIAL_STRING_(x) #x
#define URIAL_STRING(x) URIAL_STRING_(x)
// Defines the two tables that rungs.cpp looks up.
#define URIAL_DEFINE_TABLES                                           \
  namespace urial::cpu::URIAL_RUNG {                                  \
  extern const Kernels bf16_kernels, f32_kernels;                     \
  const Kernels bf16_kernels = table<Bf16>(URIAL_STRING(URIAL_RUNG)); \
  const Kernels f32_kernels = table<F32>(URIAL_STRING(URIAL_RUNG));   \
  }
