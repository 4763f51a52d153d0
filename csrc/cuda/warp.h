// What the 32 threads of a warp say together. All of them must call; all of them get the result,
// the same bits, in an order that is always the same.
#pragma once
#include "../rank.h"
#include "launch.h"

namespace urial::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = ~0u;

struct Warp {
  static constexpr int lanes = kWarp;
  int lane;

  __device__ Warp() : lane(int(threadIdx.x % kWarp)) {}

  template <class T>
  __device__ T sum(T v) const {
    for (int far = kWarp / 2; far > 0; far /= 2) v += __shfl_xor_sync(kAll, v, far);
    return v;
  }
  template <class T>
  __device__ T largest(T v) const {
    for (int far = kWarp / 2; far > 0; far /= 2) {
      const T other = __shfl_xor_sync(kAll, v, far);
      v = other > v ? other : v;
    }
    return v;
  }
  // The sum of this lane's value and those of the lanes before it.
  template <class T>
  __device__ T running(T v) const {
    for (int far = 1; far < kWarp; far *= 2) {
      const T before = __shfl_up_sync(kAll, v, far);
      if (lane >= far) v += before;
    }
    return v;
  }
};

}  // namespace urial::cuda
