// What Python sees of a model: checks shapes at the door, releases the GIL, turns a fault into
// numbers the caller can name. Only bindings*.{h,cpp} know Python.
#include "bindings_arrays.h"
#include "bindings_ops.h"
#include "cpu/head.h"
#include "cpu/limits.h"
#include "cpu/sample.h"
#include "philox.h"

namespace {

const std::pair<const char*, Part> kParts[] = {
    {"q_proj", Part::kQuery},   {"k_proj", Part::kKey},     {"v_proj", Part::kValue},
    {"o_proj", Part::kOutput},  {"gate_proj", Part::kGate}, {"up_proj", Part::kUp},
    {"down_proj", Part::kDown}, {"lm_head", Part::kHead},   {"embed_tokens", Part::kEmbedding}};

Part part_of(const std::string& name) {
  for (const auto& [known, part] : kParts)
    if (name == known) return part;
  throw py::value_error("unknown weight part " + name);
}

std::vector<std::string> isas() {
  const char* names[8];
  const int count = available_isas(names, 8);
  return {names, names + count};
}

// What the machine can do at most, see limits.h: bytes or operations a second.
double bandwidth(int threads, double seconds, size_t bytes) {
  constexpr size_t kLeast = 4096;
  expect(threads > 0 && bytes / threads >= kLeast, "every thread needs 4096 bytes to read");
  return read_bandwidth(threads, seconds, bytes);
}

double peak(const std::string& isa, const std::string& dtype, int threads, double seconds) {
  expect(threads > 0, "at least one thread");
  const double found = arithmetic_peak(isa, dtype_of(dtype), threads, seconds);
  if (found == 0) throw py::value_error("instruction set " + isa + " cannot be had here");
  return found;
}

struct Bindings {
  static std::unique_ptr<Model> make(const py::dict& s, const std::string& dtype,
                                     const std::string& isa, int threads,
                                     const F32Array& frequencies) {
    expect(threads > 0, "at least one thread");
    auto get = [&](const char* key) { return s[key].cast<int>(); };
    const Shape shape{get("vocab"),          get("hidden"),
                      get("feed_forward"),   get("layers"),
                      get("heads"),          get("kv_heads"),
                      get("head_dim"),       get("window"),
                      get("positions"),      s["norm_eps"].cast<float>(),
                      s["tied"].cast<bool>()};
    expect(frequencies.size() == shape.head_dim / 2 && frequencies.size() > 0,
           "rotary frequencies must be [head_dim / 2]");
    return std::make_unique<Model>(shape, dtype_of(dtype), isa, threads, frequencies.data());
  }

  static void load_matrix(Model& m, const std::string& part, int layer, int first,
                          const py::array& source) {
    const Weight w(source);
    const Part to = part_of(part);
    py::gil_scoped_release release;
    m.load_matrix(to, layer, first, w.data, w.type, w.rows, w.columns);
  }

  static void load_bias(Model& m, const std::string& part, int layer, const F32Array& bias) {
    m.load_bias(part_of(part), layer, bias.data(), int(bias.size()));
  }

  static void load_norm(Model& m, int layer, bool feed_forward, const F32Array& weight) {
    expect(weight.size() == m.shape().hidden, "a norm must have the hidden size");
    m.load_norm(layer, feed_forward, weight.data());
  }

  // -> (hidden [T, C], fault layer, fault row); row -1 when all is finite, layer -1 for the
  // embedding.
  static py::tuple forward(Model& m, const I32Array& ids, const I32Array& positions,
                           const I32Array& sequences, const I32Array& tables) {
    const Shape& s = m.shape();
    const RowArrays at{positions, sequences, tables};
    at.check(s.positions, m.blocks());
    const int rows = at.count();
    expect(ids.size() == rows, "a batch needs an id a row");
    for (int t = 0; t < rows; ++t)
      expect(ids.data()[t] >= 0 && ids.data()[t] < s.vocab, "token id outside the vocabulary");
    F32Array hidden({py::ssize_t(rows), py::ssize_t(s.hidden)});
    const ForwardArgs args{ids.data(), positions.data(), sequences.data(),     tables.data(),
                           rows,       at.stride(),      hidden.mutable_data()};
    Fault fault;
    {
      py::gil_scoped_release release;
      fault = m.forward(args);
    }
    return py::make_tuple(hidden, fault.layer, fault.row);
  }

  static int check_hidden(const Model& m, const F32Array& hidden) {
    expect(hidden.ndim() == 2 && hidden.shape(1) == m.shape().hidden,
           "hidden states must be [M, C]");
    return int(hidden.shape(0));
  }

  static py::tuple logits(Model& m, const F32Array& hidden) {
    const int rows = check_hidden(m, hidden);
    F32Array out({py::ssize_t(rows), py::ssize_t(m.shape().vocab)});
    const float* in = hidden.data();
    float* to = out.mutable_data();
    int bad;
    {
      py::gil_scoped_release release;
      bad = rows ? all_logits(m, in, rows, to) : -1;
    }
    return py::make_tuple(out, bad);
  }

  // Output arrays of one scored head, and the arguments that point into them.
  struct Scored {
    I32Array rank, ties, top_ids;
    F32Array logprob, entropy, top_logprobs, kl;
    ScoreArgs args;

    Scored(const Model& m, const F32Array& hidden, const I32Array& targets, int top_k)
        : rank(targets.size()),
          ties(targets.size()),
          top_ids({targets.size(), py::ssize_t(top_k)}),
          logprob(targets.size()),
          entropy(targets.size()),
          top_logprobs({targets.size(), py::ssize_t(top_k)}),
          kl(targets.size()) {
      const int rows = check_hidden(m, hidden);
      expect(targets.size() == rows, "one target a hidden state");
      expect(top_k >= 0 && top_k <= m.shape().vocab, "top_k outside 0 .. vocabulary");
      for (int i = 0; i < rows; ++i)
        expect(targets.data()[i] >= 0 && targets.data()[i] < m.shape().vocab,
               "target outside the vocabulary");
      args = {hidden.data(),
              targets.data(),
              rows,
              top_k,
              rank.mutable_data(),
              ties.mutable_data(),
              logprob.mutable_data(),
              entropy.mutable_data(),
              top_ids.mutable_data(),
              top_logprobs.mutable_data(),
              kl.mutable_data()};
    }
    py::tuple fields() const {
      return py::make_tuple(rank, ties, logprob, entropy, top_ids, top_logprobs);
    }
  };

  static py::tuple score(Model& m, const F32Array& hidden, const I32Array& targets, int top_k) {
    Scored out(m, hidden, targets, top_k);
    int bad;
    {
      py::gil_scoped_release release;
      bad = out.args.rows ? urial::cpu::score(m, out.args) : -1;
    }
    return py::make_tuple(out.fields(), bad);
  }

  static py::tuple compare(Model& base, const F32Array& hidden, const I32Array& targets, int top_k,
                           Model& aligned, const F32Array& aligned_hidden) {
    expect(base.shape().vocab == aligned.shape().vocab, "two heads need the same vocabulary");
    Scored a(base, hidden, targets, top_k), b(aligned, aligned_hidden, targets, top_k);
    int bad;
    {
      py::gil_scoped_release release;
      bad = a.args.rows ? urial::cpu::compare(base, a.args, aligned, b.args) : -1;
    }
    return py::make_tuple(a.fields(), b.fields(), b.kl, a.kl, bad);
  }

  // how: the arrays of backends/base.py's SampleBatch, by name. Their lengths and ids are checked
  // here.
  static py::tuple next_tokens(Model& m, const F32Array& hidden, const py::dict& how,
                               int top_logprobs) {
    const int rows = check_hidden(m, hidden), vocab = m.shape().vocab;
    expect(top_logprobs >= 0 && top_logprobs <= vocab, "top_logprobs outside 0 .. vocabulary");
    std::vector<py::object> alive;
    auto take = [&](const char* name, auto zero, int length) {
      using T = decltype(zero);
      auto array = how[name].cast<Array<T>>();
      if (length >= 0 && array.size() != length)
        throw py::value_error(std::string(name) + " has the wrong length");
      alive.push_back(array);
      return array;
    };
    auto ragged = [&](const char* name, const I32Array& offsets, int length) {
      expect(offsets.data()[0] == 0 && offsets.data()[rows] == length, "ragged offsets do not fit");
      for (int i = 0; i < rows; ++i)
        expect(offsets.data()[i] <= offsets.data()[i + 1], "ragged offsets must rise");
      auto ids = take(name, int32_t(), length);
      for (int i = 0; i < length; ++i)
        expect(ids.data()[i] >= 0 && ids.data()[i] < vocab,
               "penalised or banned id outside the vocabulary");
      return ids.data();
    };
    I32Array token_ids(rows), rank(rows), top_ids({py::ssize_t(rows), py::ssize_t(top_logprobs)});
    F32Array logprob(rows), top_values({py::ssize_t(rows), py::ssize_t(top_logprobs)});
    SampleArgs a{};
    a.hidden = hidden.data(), a.rows = rows, a.top_logprobs = top_logprobs;
    a.temperature = take("temperature", 0.f, rows).data();
    a.top_p = take("top_p", 0.f, rows).data(), a.min_p = take("min_p", 0.f, rows).data();
    a.repetition = take("repetition_penalty", 0.f, rows).data();
    a.presence = take("presence_penalty", 0.f, rows).data();
    a.frequency = take("frequency_penalty", 0.f, rows).data();
    a.top_k = take("top_k", int32_t(), rows).data();
    a.seed = take("seed", uint64_t(), rows).data();
    a.sample = take("sample", uint32_t(), rows).data(),
    a.position = take("position", uint32_t(), rows).data();
    const auto penalty_offsets = take("penalty_offsets", int32_t(), rows + 1);
    const auto banned_offsets = take("banned_offsets", int32_t(), rows + 1);
    const int penalties = int(take("penalty_ids", int32_t(), -1).size()),
              banned = int(take("banned_ids", int32_t(), -1).size());
    a.penalty_offsets = penalty_offsets.data(), a.banned_offsets = banned_offsets.data();
    a.penalty_ids = ragged("penalty_ids", penalty_offsets, penalties);
    a.penalty_counts = take("penalty_counts", int32_t(), penalties).data();
    a.penalty_repeats = take("penalty_repeats", uint8_t(), penalties).data();
    a.banned_ids = ragged("banned_ids", banned_offsets, banned);
    a.token_ids = token_ids.mutable_data(), a.rank = rank.mutable_data(),
    a.logprob = logprob.mutable_data();
    a.top_ids = top_ids.mutable_data(), a.top_values = top_values.mutable_data();
    int bad;
    {
      py::gil_scoped_release release;
      bad = rows ? urial::cpu::next_tokens(m, a) : -1;
    }
    return py::make_tuple(token_ids, logprob, rank, top_ids, top_values, bad);
  }

  static char* block(const Model& m, size_t i) {
    expect(i < m.blocks(), "block outside the pool");
    return m.block(i);
  }
  static void copy_block(Model& m, size_t from, size_t to) {
    std::memcpy(block(m, to), block(m, from), m.block_bytes());
  }
  static Array<uint8_t> read_block(const Model& m, size_t i) {
    return Array<uint8_t>(py::ssize_t(m.block_bytes()),
                          reinterpret_cast<const uint8_t*>(block(m, i)));
  }
  static void write_block(Model& m, size_t i, const Array<uint8_t>& data) {
    expect(size_t(data.size()) == m.block_bytes(), "a block has another size");
    std::memcpy(block(m, i), data.data(), m.block_bytes());
  }
};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() =
      "Native CPU backend. Called through urial_engine.backends.cpu; shapes in the letters of "
      "docs/architecture.md.";
  m.attr("BLOCK_SIZE") = kBlock;
  m.attr("MAX_HEAD_SIZE") = kMaxHead;
  m.attr("MAX_GROUP") = kMaxQueries;
  m.attr("BUILD") = URIAL_BUILD;  // of the sources and the compiler
  m.def("available_isas", isas,
        "Instruction sets of this build that this machine runs, best first.");
  m.def("philox", urial::philox, py::arg("seed"), py::arg("position"), py::arg("sample"));
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.def("read_bandwidth", bandwidth, py::arg("threads"), py::arg("seconds"), py::arg("bytes"),
        unlocked);
  m.def("arithmetic_peak", peak, py::arg("isa"), py::arg("dtype"), py::arg("threads"),
        py::arg("seconds"), unlocked);
  py::class_<Model>(m, "Model")
      .def(py::init(&Bindings::make), py::arg("shape"), py::arg("dtype"), py::arg("isa"),
           py::arg("threads"), py::arg("frequencies"))
      .def("load_matrix", &Bindings::load_matrix)
      .def("load_bias", &Bindings::load_bias)
      .def("load_norm", &Bindings::load_norm)
      .def("allocate", &Model::allocate)
      .def("forward", &Bindings::forward)
      .def("logits", &Bindings::logits)
      .def("score", &Bindings::score)
      .def("compare", &Bindings::compare)
      .def("next_tokens", &Bindings::next_tokens)
      .def("copy_block", &Bindings::copy_block)
      .def("read_block", &Bindings::read_block)
      .def("write_block", &Bindings::write_block)
      .def_property_readonly("block_bytes", &Model::block_bytes)
      .def_property_readonly("weight_bytes", &Model::weight_bytes);
  operations::bind(m);
}
