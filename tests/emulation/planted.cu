// Faults on purpose, each in a kernel of a few lines, to see that the emulation finds them.
#include "cuda/launch.h"

namespace urial::cuda {
namespace {

constexpr int kThreads = 128;

struct Arrays {
  const int* in;
  int* out;
};

// Reverses a block's values. Without the barrier a thread may read what is not written yet.
template <bool kBarrier>
__device__ void reverse(const int* in, int* out, int* shared) {
  const int i = int(threadIdx.x);
  shared[i] = in[i];
  if (kBarrier) __syncthreads();
  out[i] = shared[kThreads - 1 - i];
}
__global__ void sound(Arrays a) {
  __shared__ int shared[kThreads];
  reverse<true>(a.in, a.out, shared);
}
__global__ void race(Arrays a) {
  __shared__ int shared[kThreads];
  reverse<false>(a.in, a.out, shared);
}
__global__ void past_the_end(Arrays a) { a.out[threadIdx.x + 1] = a.in[threadIdx.x]; }
__global__ void past_shared(Arrays a) {
  __shared__ int shared[kThreads];
  int* next = shared + 1;
  next[threadIdx.x] = a.in[threadIdx.x];
  a.out[threadIdx.x] = shared[threadIdx.x];
}
__global__ void uninitialised(Arrays a) {
  __shared__ int shared[kThreads];
  if (threadIdx.x > 0) shared[threadIdx.x] = a.in[threadIdx.x];
  a.out[threadIdx.x] = shared[threadIdx.x];
}
__global__ void barrier_for_some(Arrays a) {
  if (a.in[threadIdx.x] > 0) __syncthreads();
  a.out[threadIdx.x] = a.in[threadIdx.x];
}
__global__ void lane_missing(Arrays a) {
  if (threadIdx.x == 40) return;
  a.out[threadIdx.x] = __shfl_xor_sync(~0u, a.in[threadIdx.x], 1);
}
__global__ void lane_not_in_mask(Arrays a) {
  a.out[threadIdx.x] = __shfl_xor_sync(0xffffu, a.in[threadIdx.x], 1);
}
__global__ void different_operations(Arrays a) {
  const bool odd = threadIdx.x % 2;
  a.out[threadIdx.x] = odd ? __shfl_xor_sync(~0u, a.in[threadIdx.x], 1) : __all_sync(~0u, 1);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int planted(int which, const int* in, int* out) {
  void (*kernels[])(Arrays) = {sound,
                               race,
                               past_the_end,
                               past_shared,
                               uninitialised,
                               barrier_for_some,
                               lane_missing,
                               lane_not_in_mask,
                               different_operations};
  return launch(kernels[which], 1, kThreads, Arrays{in, out}, cudaStream_t());
}

}  // namespace urial::cuda
