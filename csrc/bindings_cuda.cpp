// What Python sees of the CUDA kernels, by keyword: pointers and the stream as integers, as torch
// gives them, under the names that the structs of cuda/rank.h and cuda/sample.h have. Sizes are
// checked at the door; nothing here waits for the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/rank.h"
#include "cuda/sample.h"

namespace py = pybind11;
using namespace urial;
using namespace urial::cuda;

namespace {

// An address in the device's memory, or a stream. Becomes whatever pointer is asked for.
struct Address {
  uintptr_t value;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(value);
  }
};

// The arguments of one call, each taken by its name.
class Call {
 public:
  Call(const char* name, const py::kwargs& given) : rows(0), name_(name), given_(given) {
    rows = size("rows");
  }
  int rows;

  void expect(bool ok, const std::string& what) const {
    if (!ok) throw py::value_error(name_ + (": " + what));
  }
  int size(const char* name) {
    const auto found = take(name);
    expect(found <= INT32_MAX, std::string(name) + " is not a size");
    return int(found);
  }
  // Null only where it is not needed, or where there are no rows to point to.
  Address operator()(const char* name, bool needed = true) {
    const Address found{uintptr_t(take(name))};
    expect(found.value || !needed || rows == 0, std::string(name) + " is missing");
    return found;
  }
  void expect_aligned(const float* z) const {
    expect(reinterpret_cast<uintptr_t>(z) % 16 == 0, "logits must be aligned to 16 bytes");
  }
  Block block() {
    const int columns = size("columns"), stride = size("stride"), first = size("first");
    const Block b{(*this)("z"), rows, columns, stride, first, size("vocab")};
    expect(columns <= b.vocab - first && columns <= stride && first % kTile == 0 &&
               (columns % kTile == 0 || first + columns == b.vocab),
           "a block must be whole tiles of the vocabulary, but for its end");
    expect(stride % 4 == 0, "stride must be a multiple of 4");
    expect_aligned(b.z);
    return b;
  }
  template <class Arguments, class... Values>
  void run(cudaError_t (*launcher)(const Arguments&, cudaStream_t), const Values&... values) {
    const cudaStream_t stream = (*this)("stream", false);
    expect(taken_ == given_.size(), "there is an argument that it does not know");
    const cudaError_t error = launcher(Arguments{values...}, stream);
    if (error != cudaSuccess)
      throw std::runtime_error(std::string(name_) + ": " + cudaGetErrorName(error) + ": " +
                               cudaGetErrorString(error));
  }

 private:
  unsigned long long take(const char* name) {  // 0 where it is not given
    if (!given_.contains(name)) return 0;
    ++taken_;
    return given_[name].cast<unsigned long long>();
  }
  const char* name_;
  const py::kwargs& given_;
  size_t taken_ = 0;
};

void bind_take_logits(const py::kwargs& given) {
  Call c("take_logits", given);
  c.run(take_logits, c("z"), c("ids", false), c("out"), c.rows, c.size("stride"));
}

void bind_rank_tile(const py::kwargs& given) {
  Call c("rank_tile", given);
  const Address other = c("other", false);
  c.expect_aligned(other);
  c.run(rank_tile, c.block(), other, c("targets"), c("target_logit"), c("stats"), c("seen", false));
}

void bind_top_k_tile(const py::kwargs& given) {
  Call c("top_k_tile", given);
  const int k = c.size("k");
  c.run(top_k_tile, c.block(), c("stats", k > 0), k, c("entries", k > 0));
}

void bind_rank_finish(const py::kwargs& given) {
  Call c("rank_finish", given);
  const int vocab = c.size("vocab"), k = c.size("k");
  const Address others = c("other_stats", false), kl = c("kl", false), seen = c("seen", false);
  c.expect(0 < vocab && k <= vocab, "k must be within the vocabulary");
  c.expect(!others.value == !kl.value, "other_stats goes with kl");
  c.run(rank_finish, c("stats"), others, c("target_logit"), seen, c("entries", k > 0), c.rows,
        vocab, k, c("rank"), c("ties"), c("logprob"), c("entropy"), c("top_ids", k > 0),
        c("top_logprobs", k > 0), kl, c("finite"), c("mismatches", seen.value));
}

void bind_sample(const py::kwargs& given) {
  Call c("sample", given);
  const int vocab = c.size("vocab"), stride = c.size("stride");
  c.expect(0 < vocab && vocab <= kMaxVocab && vocab <= stride, "vocab must be within 1 .. 2^20");
  c.run(sample, c("z"), c.rows, vocab, stride, c("temperature"), c("top_p"), c("min_p"),
        c("repetition"), c("presence"), c("frequency"), c("top_k"), c("seed"), c("sample"),
        c("position"), c("penalty_offsets"), c("penalty_ids", false), c("penalty_counts", false),
        c("penalty_repeats", false), c("banned_offsets"), c("banned_ids", false),
        c("scratch", false), c("token_ids"), c("possible"));
}

// 13000 for CUDA 13.0; 0 where there is none.
template <cudaError_t (*kAsk)(int*)>
int version() {
  int found = 0;
  return kAsk(&found) == cudaSuccess ? found : 0;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of the head. Called through urial_engine.backends.cuda.";
  m.attr("TILE") = kTile;
  m.attr("STATS_BYTES") = sizeof(TileStats);
  m.attr("ENTRY_BYTES") = sizeof(Entry);
  m.attr("ARCHITECTURES") = py::str(URIAL_CUDA_ARCHITECTURES).attr("split")(",");
  m.def("driver_version", version<cudaDriverGetVersion>);
  m.def("runtime_version", version<cudaRuntimeGetVersion>);
  m.def("take_logits", bind_take_logits);
  m.def("rank_tile", bind_rank_tile);
  m.def("top_k_tile", bind_top_k_tile);
  m.def("rank_finish", bind_rank_finish);
  m.def("sample", bind_sample);
}
