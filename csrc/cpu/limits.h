// What this machine can do at most. Every speed that is reported is a share of one of these.
#pragma once
#include <string>

#include "types.h"

namespace urial::cpu {

// Bytes a second that the threads read together out of `bytes` of memory, each its own part, over
// and over: the best pass of about `seconds`. What fits in a cache is read from the cache.
double read_bandwidth(int threads, double seconds, size_t bytes);

// Operations a second (a multiply-add is two) of the instruction with which an instruction set
// multiplies this dtype, on registers alone: the best pass of about `seconds`. 0 when this build or
// this machine does not have the instruction set.
double arithmetic_peak(const std::string& isa, Dtype dtype, int threads, double seconds);

}  // namespace urial::cpu
