// Python's view of single operations (cpu/ops.h): what tests and benchmarks call.
#pragma once
#include <optional>
#include <utility>

#include "bindings_arrays.h"
#include "cpu/ops.h"

namespace operations {

inline const Kernels& kernels_of(const std::string& isa, const std::string& dtype) {
  return kernels_or_throw(isa, dtype_of(dtype));
}

inline std::unique_ptr<Linear> make_linear(const py::array& weight,
                                           const std::optional<F32Array>& bias, bool gated,
                                           const std::string& dtype, const std::string& isa,
                                           int threads) {
  const Weight w(weight);
  expect(w.rows > 0 && w.columns > 0, "a weight must not be empty");
  expect(!gated || w.rows % 2 == 0, "a gated layer needs as many rows of gate as of what it gates");
  expect(!bias || bias->size() == w.rows, "a bias must have a value a row of the weight");
  expect(threads > 0, "at least one thread");
  return std::make_unique<Linear>(kernels_of(isa, dtype), threads, w.data, w.type, w.rows,
                                  w.columns, bias ? bias->data() : nullptr, gated);
}

// Bytes of a packed matrix of n columns that holds the rows of a weight, as `columns` places them.
inline Array<uint8_t> pack(const py::array& weight, int n, int offset, int run, int stride,
                           const std::string& dtype) {
  const Weight w(weight);
  const Columns columns{offset, run, stride};
  expect(w.rows > 0 && w.columns > 0 && offset >= 0 && run > 0 && stride >= run,
         "a weight must not be empty, nor a run of its rows");
  expect(columns.of(w.rows - 1) < n, "the weight's rows do not fit");
  Packed to{nullptr, n, w.columns, dtype_of(dtype)};
  Array<uint8_t> out(py::ssize_t(to.bytes()));
  std::fill_n(out.mutable_data(), out.size(), uint8_t(0));
  to.data = out.mutable_data();
  pack_rows(w.data, w.type, 0, w.rows, to, columns);
  return out;
}

inline F32Array linear(Linear& layer, const F32Array& x, const std::optional<F32Array>& residual) {
  expect(x.ndim() == 2 && x.shape(1) == layer.inputs() && x.shape(0) > 0,
         "x must be [M, K] with M > 0 and the weight's K");
  const int rows = int(x.shape(0)), outputs = layer.outputs();
  F32Array out({py::ssize_t(rows), py::ssize_t(outputs)});
  if (residual) {
    expect(residual->ndim() == 2 && residual->shape(0) == rows && residual->shape(1) == outputs,
           "the residual must have the shape of the output");
    std::copy_n(residual->data(), residual->size(), out.mutable_data());
  }
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  layer.run(x.data(), rows, residual.has_value(), to);
  return out;
}

inline std::unique_ptr<Cache> make_cache(int heads, int kv_heads, int head_dim, int window,
                                         int blocks, const std::string& dtype,
                                         const std::string& isa, int threads) {
  expect(kv_heads > 0 && heads % kv_heads == 0 && heads > 0 && heads / kv_heads <= kMaxQueries,
         "heads must be a multiple of kv_heads, at most 128 times");
  expect(head_dim > 0 && head_dim % 2 == 0 && head_dim <= kMaxHead,
         "head size must be even and at most 256");
  expect(blocks > 0 && threads > 0, "at least one block and one thread");
  return std::make_unique<Cache>(kernels_of(isa, dtype), threads, heads, kv_heads, head_dim, window,
                                 blocks);
}

inline Rows rows_of(const RowArrays& r) {
  return {r.positions.data(), r.sequences.data(), r.tables.data(), r.count(), r.stride()};
}

inline F32Array queries_like(const Cache& cache, int rows) {
  return F32Array({py::ssize_t(rows), py::ssize_t(cache.heads()), py::ssize_t(cache.head_dim())});
}

inline py::tuple rope(Cache& cache, const F32Array& qkv, const F32Array& cos, const F32Array& sin,
                      const I32Array& positions, const I32Array& sequences,
                      const I32Array& tables) {
  const RowArrays rows{positions, sequences, tables};
  const int half = cache.head_dim() / 2;
  expect(cos.ndim() == 2 && cos.shape(1) == half && sin.ndim() == 2 && sin.size() == cos.size(),
         "rotary tables must be [positions, D / 2]");
  rows.check(int(cos.shape(0)), cache.blocks());
  expect(
      qkv.size() == py::ssize_t(rows.count()) * (cache.heads() + 2 * cache.kv_heads()) * 2 * half,
      "qkv must be [T, (H + 2 K) D]");
  F32Array q = queries_like(cache, rows.count());
  float* to = q.mutable_data();
  int bad;
  {
    py::gil_scoped_release release;
    bad = cache.rope(rows_of(rows), qkv.data(), cos.data(), sin.data(), to);
  }
  return py::make_tuple(q, bad);
}

inline F32Array attend(Cache& cache, const F32Array& q, const I32Array& positions,
                       const I32Array& sequences, const I32Array& tables, int tile_queries,
                       int parts) {
  const RowArrays rows{positions, sequences, tables};
  rows.check(1 << 30, cache.blocks());
  expect(q.size() == py::ssize_t(rows.count()) * cache.heads() * cache.head_dim(),
         "queries must be [T, H, D]");
  expect(tile_queries > 0 && tile_queries <= kMaxQueries, "a tile holds 1 to 128 queries");
  const int group = cache.heads() / cache.kv_heads();
  expect(parts >= 0 && (parts < 2 || rows.count() <= tile_rows(group, tile_queries)),
         "parts are of one tile: all queries of a key head must fit in it");
  F32Array out = queries_like(cache, rows.count());
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  cache.attend(rows_of(rows), q.data(), tile_queries, parts, to);
  return out;
}

inline Array<uint8_t> read_block(const Cache& cache, size_t i) {
  expect(i < cache.blocks(), "block outside the pool");
  return Array<uint8_t>(py::ssize_t(cache.block_bytes()),
                        reinterpret_cast<const uint8_t*>(cache.block(i)));
}

inline py::tuple norm(const F32Array& x, const F32Array& weight, float eps,
                      const std::string& dtype, const std::string& isa) {
  expect(x.ndim() == 2 && x.size() > 0 && x.shape(1) == weight.size(),
         "x must be [T, C] and the weight [C]");
  F32Array full({x.shape(0), x.shape(1)}), rounded({x.shape(0), x.shape(1)});
  const int bad = rmsnorm(kernels_of(isa, dtype), x.data(), weight.data(), eps, int(x.shape(0)),
                          int(x.shape(1)), full.mutable_data(), rounded.mutable_data());
  return py::make_tuple(full, rounded, bad);
}

// z and other [R][n], n a multiple of 32; z_y [R]. A column of doubles for each field of TileStats.
inline Array<double> statistics(const F32Array& z, const std::optional<F32Array>& other,
                                const F32Array& z_y, const std::string& dtype,
                                const std::string& isa) {
  expect(z.ndim() == 2 && z.shape(1) > 0 && z.shape(1) % kPanel == 0,
         "logits must be [R, n], n a multiple of 32");
  expect(z_y.size() == z.shape(0) && (!other || other->size() == z.size()),
         "one target logit a row, and another head's logits of the same shape");
  constexpr int kFields = 7;
  const Kernels& k = kernels_of(isa, dtype);
  const int n = int(z.shape(1));
  Array<double> out({z.shape(0), py::ssize_t(kFields)});
  for (py::ssize_t r = 0; r < z.shape(0); ++r) {
    const urial::TileStats s =
        k.stats(z.data() + r * n, other ? other->data() + r * n : nullptr, n, z_y.data()[r]);
    const double fields[] = {
        s.max, s.sum, s.dot, s.cross, double(s.greater), double(s.equal), s.finite ? 1. : 0.};
    std::copy_n(fields, kFields, out.mutable_data() + r * kFields);
  }
  return out;
}

inline std::unique_ptr<Model> head(const py::array& weight, const std::string& dtype,
                                   const std::string& isa, int threads) {
  const Weight w(weight);
  expect(w.rows > 0 && w.columns > 0 && threads > 0, "a head needs a weight and a thread");
  return head_alone(isa, dtype_of(dtype), threads, w.data, w.type, w.rows, w.columns);
}

inline void bind(py::module_& m) {
  using py::arg;
  py::class_<Linear>(m, "Linear")
      .def(py::init(&make_linear), arg("weight"), arg("bias") = py::none(), py::kw_only(),
           arg("gated") = false, arg("dtype"), arg("isa"), arg("threads") = 1)
      .def("__call__", &linear, arg("x"), arg("residual") = py::none());
  py::class_<Cache>(m, "Cache")
      .def(py::init(&make_cache), py::kw_only(), arg("heads"), arg("kv_heads"), arg("head_dim"),
           arg("window") = 0, arg("blocks"), arg("dtype"), arg("isa"), arg("threads") = 1)
      .def("rope", &rope, arg("qkv"), arg("cos"), arg("sin"), arg("positions"), arg("sequences"),
           arg("tables"))
      .def("attend", &attend, arg("q"), arg("positions"), arg("sequences"), arg("tables"),
           arg("tile_queries") = kTileQueries, arg("parts") = 0)
      .def("read_block", &read_block);
  m.def("pack", &pack, arg("weight"), py::kw_only(), arg("n"), arg("offset") = 0,
        arg("run") = 1 << 30, arg("stride") = 1 << 30, arg("dtype"));
  m.def("rmsnorm", &norm, arg("x"), arg("weight"), arg("epsilon"), py::kw_only(), arg("dtype"),
        arg("isa"));
  m.def("tile_statistics", &statistics, arg("z"), arg("other"), arg("z_y"), py::kw_only(),
        arg("dtype"), arg("isa"));
  m.def("head", &head, arg("weight"), py::kw_only(), arg("dtype"), arg("isa"), arg("threads") = 1);
}

}  // namespace operations
