// The random numbers of sampling: functions of their arguments and of nothing else.
#pragma once
#include <cstdint>

#include "both.h"

namespace urial {

// Philox4x32-10 (Salmon et al., SC 2011): the first word for counter (position, sample, 0, 0) and
// key `seed`.
URIAL_BOTH inline uint32_t philox(uint64_t seed, uint32_t position, uint32_t sample) {
  uint32_t c[4] = {position, sample, 0, 0}, key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53) * c[0], b = uint64_t(0xCD9E8D57) * c[2];
    c[0] = uint32_t(b >> 32) ^ c[1] ^ key[0], c[1] = uint32_t(b);
    c[2] = uint32_t(a >> 32) ^ c[3] ^ key[1], c[3] = uint32_t(a);
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  return c[0];
}

}  // namespace urial
