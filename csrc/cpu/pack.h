// From rows of a checkpoint to packed panels, and back for one row (the embedding is read from the
// packed head).
#pragma once
#include "types.h"

namespace urial::cpu {

enum class Source { kBf16, kF16, kF32 };

// Where source row i goes: column offset + (i / run) * stride + i % run. A plain matrix is one run
// without end.
struct Columns {
  int offset = 0, run = 1 << 30, stride = 0;
  int of(int row) const { return offset + row / run * stride + row % run; }
};

// Copies source [count, k] into the packed matrix as its rows from `first` on, converting its
// elements. Threads may pack different rows of one matrix.
void pack_rows(const void* source, Source type, int first, int count, const Packed& to,
               Columns columns);

// Row n of the matrix, as fp32 [k].
void unpack_row(const Packed& from, int n, float* out);

}  // namespace urial::cpu
