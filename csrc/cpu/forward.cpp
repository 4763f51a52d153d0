// All layers in one call. Every thread runs the whole pass, and they share out each step's columns,
// or all steps' rows (pool.h).
#include <algorithm>
#include <atomic>
#include <cstring>

#include "model.h"

namespace urial::cpu {

class Model::Pass {
 public:
  Pass(Model& model, const ForwardArgs& args)
      : m_(model), s_(model.shape_), k_(model.k_), a_(args) {
    residual_ = row_stride(s_.hidden, sizeof(float));
    normed_ = row_stride(s_.hidden, k_.x_bytes);
    qkv_ = row_stride((s_.heads + 2 * s_.kv_heads) * s_.head_dim, sizeof(float));
    attended_ = row_stride(s_.heads * s_.head_dim, k_.x_bytes);
    act_ = row_stride(s_.feed_forward, k_.x_bytes);
    attention_ = attention();
    attention_.parts = m_.attend_.parts(attention_);
    m_.attend_.prepare(attention_);
    group_ = k_.panels_at_once(a_.rows);
    by_rows_ = m_.team_.size() > 1 && a_.rows >= kManyRows * m_.team_.size();
  }

  Fault run() {
    m_.team_.run([this](int thread) {
      rows(thread, [this](int t) { embed(t); });
      rows(thread, [this](int t) { norm(0, t); });
      for (int l = 0; l < s_.layers; ++l) layer(thread, l);
    });
    const int64_t fault = fault_.load();
    return fault == kNone ? Fault{0, -1} : Fault{int(fault >> 32) - 1, int(fault & 0xffffffff)};
  }

 private:
  static constexpr int64_t kNone = INT64_MAX;
  // So few rows that sharing them out, and meeting once more, would take longer than doing them.
  static constexpr int kFew = 2;
  // So many rows a thread that it computes faster than the memory brings it all the weights.
  // Threads then share out rows and not columns: what one writes, no other has to fetch from its
  // cache, and only attention needs them to meet.
  static constexpr int kManyRows = 192;

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

  void layer(int thread, int l) {
    const Layer& w = m_.layers_[l];
    AttentionArgs attention = attention_;
    attention.layer_offset = m_.block_bytes_ / s_.layers * l;
    const RopeArgs rope{m_.qkv_.as<float>(), qkv_,           m_.queries_.data(),
                        m_.cos_.data(),      m_.sin_.data(), attention};
    const Matrix& after = l + 1 < s_.layers ? m_.layers_[l + 1].qkv : m_.head_;
    product(thread, product_of(w.qkv, m_.normed_, normed_, Epilogue::kStore, m_.qkv_, qkv_),
            w.output, [&](int t) {
              if (!k_.rope(rope, t)) report(l, t);
            });
    if (by_rows_) m_.team_.meet();  // all keys and values are there
    m_.attend_.run(attention);
    product(thread,
            product_of(w.output, m_.attended_, attended_, Epilogue::kAdd, m_.residual_, residual_),
            w.gate_up, [&](int t) { norm(2 * l + 1, t); });
    product(thread, product_of(w.gate_up, m_.normed_, normed_, Epilogue::kSiluMul, m_.act_, act_),
            w.down);
    product(thread, product_of(w.down, m_.act_, act_, Epilogue::kAdd, m_.residual_, residual_),
            after, [&](int t) { norm(2 * l + 2, t); });
  }

  void embed(int t) {
    unpack_row(m_.embedding_.w.data ? m_.embedding_.w : m_.head_.w, a_.token_ids[t], residual(t));
    // A row that was not finite in an earlier call has left NaN here too (0 * NaN).
    for (int i = s_.hidden; i < residual_; ++i) residual(t)[i] = 0.f;
  }

  // The i-th norm of row t: two a layer, and the final one, after which nothing reads the residual
  // stream.
  void norm(int i, int t) {
    const int l = i / 2;
    const bool last = l == s_.layers;
    const std::vector<float>& weight = last    ? m_.final_norm_
                                       : i % 2 ? m_.layers_[l].feed_forward_norm
                                               : m_.layers_[l].attention_norm;
    void* x = last ? nullptr : m_.normed_.data() + size_t(t) * normed_ * k_.x_bytes;
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

  // `after` is the matrix that is read next.
  void product(int thread, const MatmulArgs& args, const Matrix& after) {
    if (by_rows_) return own_rows(thread, args);
    own_columns(thread, args, after.w, [] {});
  }
  // The same, then what follows it in each row.
  template <class Row>
  void product(int thread, const MatmulArgs& args, const Matrix& after, Row&& row) {
    if (by_rows_) {
      own_rows(thread, args);
      const Team::Range own = m_.team_.range_of(thread, a_.rows);
      for (int t = own.begin; t < own.end; ++t) row(t);
      return;
    }
    const bool few = a_.rows <= kFew;
    own_columns(thread, args, after.w, [&] {
      for (int t = 0; few && t < a_.rows; ++t) row(t);
    });
    if (!few) rows(thread, row);
  }
  // Threads share out the columns of a product, in groups of panels that the kernel takes at once.
  // At the end of its own the thread asks for the first of those that it reads next.
  template <class AfterAll>
  void own_columns(int thread, MatmulArgs args, const Packed& after, AfterAll&& after_all) {
    const auto range = [&](const Packed& w) { return m_.team_.range_of(thread, groups(w)); };
    args.last = std::min(range(args.w).end * group_, args.w.panels()) - 1;
    args.then = after.panel(range(after).begin * group_);
    args.then_stride = ptrdiff_t(after.panel_bytes());
    const auto multiply = [&](int begin, int end) {
      k_.matmul(args, begin * group_, std::min(end * group_, args.w.panels()));
    };
    m_.team_.share(thread, groups(args.w), multiply, after_all);
  }
  int groups(const Packed& w) const { return (w.panels() + group_ - 1) / group_; }
  // A thread's own rows of a product: only it has made them, and only it reads what comes of them.
  void own_rows(int thread, MatmulArgs args) {
    const Team::Range own = m_.team_.range_of(thread, a_.rows);
    const size_t item = args.epilogue == Epilogue::kSiluMul ? k_.x_bytes : sizeof(float);
    args.x = static_cast<const char*>(args.x) + size_t(own.begin) * args.x_stride * k_.x_bytes;
    args.out = static_cast<char*>(args.out) + size_t(own.begin) * args.out_stride * item;
    args.m = own.end - own.begin;
    k_.matmul(args, 0, args.w.panels());
  }

  template <class Row>
  void rows(int thread, Row&& row) {
    m_.team_.each(thread, a_.rows, row);
  }

  float* residual(int t) { return m_.residual_.as<float>() + size_t(t) * residual_; }

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
  int residual_, normed_, qkv_, attended_, act_;  // row strides, in elements
  AttentionArgs attention_;                       // of a layer, but for its offset
  int group_;                                     // panels that are multiplied at once
  bool by_rows_;
  std::atomic<int64_t> fault_{kNone};
};

Fault Model::forward(const ForwardArgs& args) {
  reserve(args.rows);
  rotate(1 + *std::max_element(args.positions, args.positions + args.rows));
  return Pass(*this, args).run();
}

}  // namespace urial::cpu
