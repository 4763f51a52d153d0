// All layers in one call. Every thread runs the whole pass and they share out each step's slices
// (pool.h).
#include <atomic>
#include <cstring>

#include "model.h"

namespace urial::cpu {

class Model::Pass {
 public:
  Pass(Model& model, const ForwardArgs& args)
      : m_(model), s_(model.shape_), k_(model.k_), a_(args) {
    hidden_ = round_up(s_.hidden, kPanel);
    qkv_ = round_up((s_.heads + 2 * s_.kv_heads) * s_.head_dim, kPanel);
    attended_ = round_up(s_.heads * s_.head_dim, kPanel);
    act_ = round_up(s_.feed_forward, kPanel);
    attention_ = attention();
    attention_.parts = m_.attend_.parts(attention_);
    m_.attend_.prepare(attention_);
  }

  Fault run() {
    m_.team_.run([this](int) {
      rows([this](int t) { embed(t); });
      rows([this](int t) { norm(0, t); });
      for (int l = 0; l < s_.layers; ++l) layer(l);
    });
    const int64_t fault = fault_.load();
    return fault == kNone ? Fault{0, -1} : Fault{int(fault >> 32) - 1, int(fault & 0xffffffff)};
  }

 private:
  static constexpr int64_t kNone = INT64_MAX;
  // So few rows that sharing them out, and meeting once more, would take longer than doing them.
  static constexpr int kFew = 2;

  AttentionArgs attention() const {
    AttentionArgs args{};
    args.q = m_.queries_.data();
    args.out = m_.attended_.data(), args.out_stride = attended_;
    args.pool = m_.pool_.data(), args.block_bytes = m_.block_bytes_;
    args.positions = a_.positions, args.sequences = a_.sequences;
    args.tables = a_.tables, args.table_stride = a_.table_stride;
    args.rows = a_.rows, args.heads = s_.heads, args.kv_heads = s_.kv_heads;
    args.head_dim = s_.head_dim, args.window = s_.window;
    args.tile_rows = tile_rows(s_.heads / s_.kv_heads);
    return args;
  }

  void layer(int l) {
    const Layer& w = m_.layers_[l];
    AttentionArgs attention = attention_;
    attention.layer_offset = m_.block_bytes_ / s_.layers * l;
    const RopeArgs rope{m_.qkv_.as<float>(), qkv_,           m_.queries_.data(),
                        m_.cos_.data(),      m_.sin_.data(), attention};
    product(product_of(w.qkv, m_.normed_, hidden_, Epilogue::kStore, m_.qkv_, qkv_), [&](int t) {
      if (!k_.rope(rope, t)) report(l, t);
    });
    m_.attend_.run(attention);
    product(product_of(w.output, m_.attended_, attended_, Epilogue::kAdd, m_.residual_, hidden_),
            [&](int t) { norm(2 * l + 1, t); });
    product(product_of(w.gate_up, m_.normed_, hidden_, Epilogue::kSiluMul, m_.act_, act_));
    product(product_of(w.down, m_.act_, act_, Epilogue::kAdd, m_.residual_, hidden_),
            [&](int t) { norm(2 * l + 2, t); });
  }

  void embed(int t) {
    unpack_row(m_.embedding_.w.data ? m_.embedding_.w : m_.head_.w, a_.token_ids[t], residual(t));
    // A row that was not finite in an earlier call has left NaN here too (0 * NaN).
    for (int i = s_.hidden; i < hidden_; ++i) residual(t)[i] = 0.f;
  }

  // The i-th norm of row t: two a layer, and the final one, after which nothing reads the residual
  // stream.
  void norm(int i, int t) {
    const int l = i / 2;
    const bool last = l == s_.layers;
    const std::vector<float>& weight = last    ? m_.final_norm_
                                       : i % 2 ? m_.layers_[l].feed_forward_norm
                                               : m_.layers_[l].attention_norm;
    void* x = last ? nullptr : m_.normed_.data() + size_t(t) * hidden_ * k_.x_bytes;
    float* full = last ? residual(t) : nullptr;
    // What the stream holds before a layer's first norm is the layer before's.
    if (!k_.rmsnorm(residual(t), weight.data(), s_.norm_eps, s_.hidden, x, full))
      report(i % 2 ? l : l - 1, t);
    if (last) std::memcpy(a_.hidden + size_t(t) * s_.hidden, full, s_.hidden * sizeof(float));
  }

  MatmulArgs product_of(const Matrix& w, const Memory& x, int x_stride, Epilogue epilogue,
                        const Memory& out, int out_stride) const {
    const float* bias = w.bias.empty() ? nullptr : w.bias.data();
    return {x.data(), x_stride, a_.rows, w.w, bias, epilogue, out.data(), out_stride};
  }

  void product(const MatmulArgs& args) {
    m_.team_.share(args.w.panels(), [&](int begin, int end) { k_.matmul(args, begin, end); });
  }
  // The same, then what follows it in each row.
  template <class Row>
  void product(const MatmulArgs& args, Row&& row) {
    const bool few = a_.rows <= kFew;
    m_.team_.share(
        args.w.panels(), [&](int begin, int end) { k_.matmul(args, begin, end); },
        [&] {
          for (int t = 0; few && t < a_.rows; ++t) row(t);
        });
    if (!few) rows(row);
  }

  template <class Row>
  void rows(Row&& row) {
    m_.team_.each(a_.rows, row);
  }

  float* residual(int t) { return m_.residual_.as<float>() + size_t(t) * hidden_; }

  // Keeps the first layer, then the first row.
  void report(int layer, int row) {
    const int64_t fault = int64_t(layer + 1) << 32 | row;
    int64_t known = fault_.load();
    while (fault < known && !fault_.compare_exchange_weak(known, fault)) {
    }
  }

  Model& m_;
  const Shape& s_;
  const Kernels& k_;
  const ForwardArgs& a_;
  int hidden_, qkv_, attended_, act_;  // row strides, in elements
  AttentionArgs attention_;            // of a layer, but for its offset
  std::atomic<int64_t> fault_{kNone};
};

Fault Model::forward(const ForwardArgs& args) {
  reserve(args.rows);
  return Pass(*this, args).run();
}

}  // namespace urial::cpu
