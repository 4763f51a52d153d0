// All layers in one call. Every thread runs the whole pass and they share out each step's slices
// (pool.h).
#include <algorithm>
#include <atomic>
#include <cstring>

#include "model.h"

namespace urial::cpu {
namespace {

// Slices of panels: several a thread, so that a slow core delays the others little.
int panel_slice(int panels, int threads) {
  const int slice = panels / (threads * 4);
  return slice > 0 ? slice : 1;
}

}  // namespace

class Model::Pass {
 public:
  Pass(Model& model, const ForwardArgs& args)
      : m_(model), s_(model.shape_), k_(model.k_), a_(args) {
    hidden_ = round_up(s_.hidden, kPanel);
    qkv_ = round_up((s_.heads + 2 * s_.kv_heads) * s_.head_dim, kPanel);
    attended_ = round_up(s_.heads * s_.head_dim, kPanel);
    act_ = round_up(s_.feed_forward, kPanel);
    tile_rows_ = tile_rows(s_.heads / s_.kv_heads);
  }

  Fault run() {
    m_.team_.run([this](int) {
      embed();
      for (int l = 0; l < s_.layers; ++l) layer(l);
      norm(s_.layers - 1, m_.final_norm_, true);
    });
    const int64_t fault = fault_.load();
    return fault == kNone ? Fault{0, -1} : Fault{int(fault >> 32) - 1, int(fault & 0xffffffff)};
  }

 private:
  static constexpr int64_t kNone = INT64_MAX;

  void embed() {
    const Packed& from = m_.embedding_.w.data ? m_.embedding_.w : m_.head_.w;
    m_.team_.share(a_.rows, 8, [&](int begin, int end) {
      for (int t = begin; t < end; ++t) {
        unpack_row(from, a_.token_ids[t], residual(t));
        // A row that was not finite in an earlier call has left NaN here too (0 * NaN).
        for (int i = s_.hidden; i < hidden_; ++i) residual(t)[i] = 0.f;
      }
    });
  }

  void layer(int l) {
    const Layer& w = m_.layers_[l];
    norm(l - 1, w.attention_norm, false);
    matmul(w.qkv, m_.normed_, hidden_, Epilogue::kStore, m_.qkv_, qkv_);
    attention(l);
    matmul(w.output, m_.attended_, attended_, Epilogue::kAdd, m_.residual_, hidden_);
    norm(l, w.feed_forward_norm, false);
    matmul(w.gate_up, m_.normed_, hidden_, Epilogue::kSiluMul, m_.act_, act_);
    matmul(w.down, m_.act_, act_, Epilogue::kAdd, m_.residual_, hidden_);
  }

  // Norm of every row. `layer` is the one whose output the residual stream now holds: that is where
  // a fault arose.
  void norm(int layer, const std::vector<float>& weight, bool last) {
    m_.team_.share(a_.rows, 4, [&](int begin, int end) {
      for (int t = begin; t < end; ++t) {
        void* x = last ? nullptr : m_.normed_.data() + size_t(t) * hidden_ * k_.x_bytes;
        float* full =
            last ? residual(t) : nullptr;  // nothing reads the stream after the final norm
        if (!k_.rmsnorm(residual(t), weight.data(), s_.norm_eps, s_.hidden, x, full))
          report(layer, t);
        if (last) std::memcpy(a_.hidden + size_t(t) * s_.hidden, full, s_.hidden * sizeof(float));
      }
    });
  }

  void matmul(const Matrix& w, const Memory& x, int x_stride, Epilogue epilogue, const Memory& out,
              int out_stride) {
    const float* bias = w.bias.empty() ? nullptr : w.bias.data();
    const MatmulArgs args{x.data(), x_stride, a_.rows, w.w, bias, epilogue, out.data(), out_stride};
    const int panels = w.w.panels();
    m_.team_.share(panels, panel_slice(panels, m_.team_.size()),
                   [&](int begin, int end) { k_.matmul(args, begin, end); });
  }

  void attention(int l) {
    AttentionArgs args{};
    args.q = m_.queries_.data();
    args.out = m_.attended_.data(), args.out_stride = attended_;
    args.pool = m_.pool_.data(), args.block_bytes = m_.block_bytes_;
    args.layer_offset = m_.block_bytes_ / s_.layers * l;
    args.positions = a_.positions, args.sequences = a_.sequences;
    args.tables = a_.tables, args.table_stride = a_.table_stride;
    args.rows = a_.rows, args.heads = s_.heads, args.kv_heads = s_.kv_heads,
    args.head_dim = s_.head_dim;
    args.window = s_.window, args.tile_rows = tile_rows_;
    const RopeArgs rope{m_.qkv_.as<float>(), qkv_,           m_.queries_.data(),
                        m_.cos_.data(),      m_.sin_.data(), args};
    m_.team_.share(a_.rows, 1, [&](int t, int) {
      if (!k_.rope(rope, t)) report(l, t);
    });
    const int tiles = (a_.rows + tile_rows_ - 1) / tile_rows_;
    m_.team_.share(tiles * s_.kv_heads, 1,
                   [&](int i, int) { k_.attention(args, i % s_.kv_heads, i / s_.kv_heads); });
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
  int tile_rows_;
  std::atomic<int64_t> fault_{kNone};
};

Fault Model::forward(const ForwardArgs& args) {
  reserve(args.rows);
  rotate(1 + *std::max_element(args.positions, args.positions + args.rows));
  return Pass(*this, args).run();
}

}  // namespace urial::cpu
