// What crosses from Python: array types, and what is checked before native code sees a pointer.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "cpu/pack.h"
#include "cpu/types.h"

namespace py = pybind11;
using namespace urial::cpu;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using F32Array = Array<float>;
using I32Array = Array<int32_t>;

inline void expect(bool ok, const char* what) {
  if (!ok) throw py::value_error(what);
}

inline Dtype dtype_of(const std::string& name) {
  expect(name == "bfloat16" || name == "float32", "dtype must be bfloat16 or float32");
  return name == "bfloat16" ? Dtype::kBf16 : Dtype::kF32;
}

// A matrix of weights: bfloat16 as uint16, float16 as float16, or float32.
struct Weight {
  const void* data;
  Source type;
  int rows, columns;

  explicit Weight(const py::array& source) {
    expect(source.ndim() == 2 && (source.flags() & py::array::c_style),
           "a weight must be a contiguous matrix");
    const char kind = source.dtype().kind();
    const auto bytes = source.itemsize();
    expect((kind == 'f' && (bytes == 4 || bytes == 2)) || (kind == 'u' && bytes == 2),
           "a weight must be float32, float16, or bfloat16 as uint16");
    type = bytes == 4 ? Source::kF32 : kind == 'f' ? Source::kF16 : Source::kBf16;
    data = source.data();
    rows = int(source.shape(0)), columns = int(source.shape(1));
  }
};

// T rows of sequences whose block tables are [B, blocks].
struct RowArrays {
  const I32Array &positions, &sequences, &tables;

  int count() const { return int(positions.size()); }
  int stride() const { return tables.ndim() == 2 ? int(tables.shape(1)) : 0; }

  // Every position lies in its context, and every block that a row may touch in the pool.
  void check(int context, size_t blocks) const {
    expect(count() > 0 && sequences.size() == count() && stride() > 0,
           "a batch needs T positions and sequences, and [B, blocks] tables");
    for (int t = 0; t < count(); ++t) {
      const int p = positions.data()[t], b = sequences.data()[t];
      expect(p >= 0 && p < context && p / kBlock < stride(),
             "position outside the context or its block table");
      expect(b >= 0 && b < tables.shape(0), "sequence outside the block tables");
      // What the row before read of the same table has been checked with it.
      const bool same = t > 0 && sequences.data()[t - 1] == b;
      for (int i = same ? positions.data()[t - 1] / kBlock : 0; i <= p / kBlock; ++i) {
        const int32_t block = tables.data()[py::ssize_t(b) * stride() + i];
        expect(block >= 0 && size_t(block) < blocks, "block outside the pool");
      }
    }
  }
};
