// The one place that knows how a kernel is started. Errors of the launch come back as a value;
// those of the run show in a later call, as always in CUDA.
#pragma once
#ifdef URIAL_CUDA_HOST
#include "cuda_host.h"  // the meaning of this source on a CPU, for tests
#else
#include <cuda_runtime.h>
#endif
#include <cstdint>

namespace urial::cuda {

template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t grid, int block, const Arguments& arguments,
                   cudaStream_t stream) {
  if (grid == 0) return cudaSuccess;
#ifdef URIAL_CUDA_HOST
  return emulation::run(unsigned(grid), unsigned(block), stream, [&] { kernel(arguments); });
#else
  void* pointers[] = {const_cast<Arguments*>(&arguments)};
  return cudaLaunchKernel(kernel, dim3(unsigned(grid)), dim3(unsigned(block)), pointers, 0, stream);
#endif
}

}  // namespace urial::cuda
