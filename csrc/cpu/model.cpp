#include "model.h"

#include <cmath>
#include <stdexcept>

namespace urial::cpu {
namespace {

std::vector<float> padded(const float* values, int n) {
  std::vector<float> out(round_up(n, kPanel), 0.f);
  for (int i = 0; i < n; ++i) out[i] = values[i];
  return out;
}

}  // namespace

const Kernels& kernels_or_throw(const std::string& isa, Dtype dtype) {
  const Kernels* k = find_kernels(isa.c_str(), dtype);
  if (!k)
    throw std::invalid_argument("instruction set '" + isa +
                                "' is not in this build or not on this machine");
  return *k;
}

Model::Model(const Shape& shape, Dtype dtype, const std::string& isa, int threads,
             const float* frequencies)
    : shape_(shape),
      dtype_(dtype),
      k_(kernels_or_throw(isa, dtype)),
      team_(threads),
      frequencies_(frequencies, frequencies + shape.head_dim / 2),
      layers_(shape.layers),
      attend_(k_, team_) {
  const Shape& s = shape_;
  if (s.head_dim > kMaxHead || s.head_dim % 2)
    throw std::invalid_argument("head size must be even and at most 256");
  if (s.kv_heads < 1 || s.heads % s.kv_heads || s.heads / s.kv_heads > kMaxQueries)
    throw std::invalid_argument("query heads must be a multiple of key heads, at most 128 times");
  for (Layer& layer : layers_) {
    make(layer.qkv, (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden);
    make(layer.output, s.hidden, s.heads * s.head_dim);
    make(layer.gate_up, 2 * round_up(s.feed_forward, kPanel / 2), s.hidden);
    make(layer.down, s.hidden, s.feed_forward);
  }
  make(head_, s.vocab, s.hidden);
  if (!s.tied) make(embedding_, s.vocab, s.hidden);
  weights_ = Memory(weight_bytes_);
  char* at = weights_.data();
  const auto settle = [&at](Matrix& m) {
    m.w.data = at;
    at += m.w.bytes();
  };
  for (Layer& layer : layers_) {
    settle(layer.qkv), settle(layer.output), settle(layer.gate_up), settle(layer.down);
  }
  settle(head_);
  if (!s.tied) settle(embedding_);
  block_bytes_ = size_t(s.layers) * s.kv_heads * CacheLayout(s.head_dim, dtype).head_bytes();
}

void Model::make(Matrix& m, int n, int k) {
  m.w = Packed{nullptr, n, k, dtype_};
  weight_bytes_ += m.w.bytes();
}

Model::Place Model::place(Part part, int layer) {
  const int q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  constexpr int kHalf = kPanel / 2;
  if (part == Part::kHead || (part == Part::kEmbedding && shape_.tied))
    return {&head_, shape_.vocab, {}};
  if (part == Part::kEmbedding) return {&embedding_, shape_.vocab, {}};
  Layer& l = layers_.at(layer);
  switch (part) {
    case Part::kQuery:
      return {&l.qkv, q, {}};
    case Part::kKey:
      return {&l.qkv, kv, {q}};
    case Part::kValue:
      return {&l.qkv, kv, {q + kv}};
    case Part::kOutput:
      return {&l.output, shape_.hidden, {}};
    case Part::kGate:
      return {&l.gate_up, shape_.feed_forward, {0, kHalf, kPanel}};
    case Part::kUp:
      return {&l.gate_up, shape_.feed_forward, {kHalf, kHalf, kPanel}};
    default:
      return {&l.down, shape_.hidden, {}};
  }
}

void Model::load_matrix(Part part, int layer, int first, const void* source, Source type, int rows,
                        int columns) {
  const Place to = place(part, layer);
  if (columns != to.matrix->w.k || first < 0 || first > to.rows || rows > to.rows - first)
    throw std::invalid_argument("a weight has another shape than the configuration");
  pack_rows(source, type, first, rows, to.matrix->w, to.columns);
}

void Model::load_bias(Part part, int layer, const float* bias, int n) {
  const Place to = place(part, layer);
  if (n != to.rows) throw std::invalid_argument("a bias has another size than its weight");
  to.matrix->bias.resize(to.matrix->w.panels() * kPanel, 0.f);
  for (int i = 0; i < n; ++i) to.matrix->bias[to.columns.of(i)] = bias[i];
}

void Model::load_norm(int layer, bool feed_forward, const float* weight) {
  std::vector<float> w = padded(weight, shape_.hidden);
  weight_bytes_ += size_t(shape_.hidden) * sizeof(float);
  if (layer == shape_.layers) {
    final_norm_ = std::move(w);
  } else {
    (feed_forward ? layers_.at(layer).feed_forward_norm : layers_.at(layer).attention_norm) =
        std::move(w);
  }
}

void Model::allocate(size_t blocks) {
  pool_ = Memory();  // the old pool goes first: both may not fit
  pool_ = Memory(blocks * block_bytes_);
  blocks_ = blocks;
}

// The rotary tables grow with the positions that are used: all of a long context could take more
// memory than the weights of a small model. The angle is a float product, as in transformers; its
// cosine and sine are rounded once.
void Model::rotate(int positions) {
  for (size_t p = cos_.size() / frequencies_.size(); p < size_t(positions); ++p) {
    for (const float frequency : frequencies_) {
      const double angle = float(p) * frequency;
      cos_.push_back(float(std::cos(angle)));
      sin_.push_back(float(std::sin(angle)));
    }
  }
}

void Model::reserve(int rows) {
  if (rows <= capacity_) return;
  const Shape& s = shape_;
  const size_t x = k_.x_bytes, f = sizeof(float), r = rows;
  residual_ = Memory(r * row_stride(s.hidden, f) * f);
  normed_ = Memory(r * row_stride(s.hidden, x) * x);
  qkv_ = Memory(r * row_stride((s.heads + 2 * s.kv_heads) * s.head_dim, f) * f);
  queries_ = Memory(r * s.heads * round_up(s.head_dim, kPanel) * x);
  attended_ = Memory(r * row_stride(s.heads * s.head_dim, x) * x);
  act_ = Memory(r * row_stride(s.feed_forward, x) * x);
  capacity_ = rows;
}

}  // namespace urial::cpu
