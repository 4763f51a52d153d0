// Code that the CPU and the GPU share: nvcc compiles it for both, other compilers see plain C++.
#pragma once

#ifdef __CUDACC__
#define URIAL_BOTH __host__ __device__
#else
#define URIAL_BOTH
#endif
