#include "ops.h"

#include <atomic>
#include <cstring>

#include "numbers.h"

namespace urial::cpu {
namespace {

// n activations as fp32.
void widen(const Kernels& k, const void* x, int n, float* out) {
  if (k.x_bytes == sizeof(float)) {
    std::memcpy(out, x, n * sizeof(float));
  } else {
    for (int i = 0; i < n; ++i) out[i] = bf16_to_f32(static_cast<const uint16_t*>(x)[i]);
  }
}

constexpr int kHalf = kPanel / 2;

// The packed columns of rows [0, n) of a plain matrix, or of a gate; `up` of what a gate gates.
Columns columns_of(bool gated, bool up) {
  return gated ? Columns{up ? kHalf : 0, kHalf, kPanel} : Columns{};
}

}  // namespace

Linear::Linear(const Kernels& kernels, int threads, const void* weight, Source type, int n, int k,
               const float* bias, bool gated)
    : k_(kernels), team_(threads), gated_(gated), outputs_(gated ? n / 2 : n) {
  w_ = Packed{nullptr, gated ? 2 * round_up(outputs_, kHalf) : n, k, kernels.dtype};
  weight_ = Memory(w_.bytes());
  w_.data = weight_.data();
  if (bias) bias_.resize(w_.panels() * kPanel, 0.f);
  const size_t row = size_t(k) * (type == Source::kF32 ? 4 : 2);
  for (int first = 0; first < n; first += outputs_) {
    const Columns columns = columns_of(gated, first > 0);
    pack_rows(static_cast<const char*>(weight) + first * row, type, 0, outputs_, w_, columns);
    for (int i = 0; bias && i < outputs_; ++i) bias_[columns.of(i)] = bias[first + i];
  }
}

void Linear::run(const float* x, int rows, bool add, float* out) {
  const int in = round_up(w_.k, kPanel), width = w_.panels() * (gated_ ? kHalf : kPanel);
  const size_t y_bytes = gated_ ? k_.x_bytes : sizeof(float);
  if (rows > capacity_) {
    x_ = Memory(size_t(rows) * in * k_.x_bytes);
    y_ = Memory(size_t(rows) * width * y_bytes);
    capacity_ = rows;
  }
  const auto y = [&](int m) { return y_.data() + size_t(m) * width * y_bytes; };
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  const Epilogue epilogue = gated_ ? Epilogue::kSiluMul : add ? Epilogue::kAdd : Epilogue::kStore;
  const MatmulArgs args{x_.data(), in, rows, w_, bias, epilogue, y_.data(), width};
  const size_t row_bytes = outputs_ * sizeof(float);
  team_.run([&](int thread) {
    team_.share(thread, rows, [&](int begin, int end) {
      for (int m = begin; m < end; ++m) {
        k_.convert(x + size_t(m) * w_.k, w_.k, x_.data() + size_t(m) * in * k_.x_bytes);
        if (add) std::memcpy(y(m), out + size_t(m) * outputs_, row_bytes);
      }
    });
    team_.share(thread, w_.panels(), [&](int begin, int end) { k_.matmul(args, begin, end); });
    team_.share(thread, rows, [&](int begin, int end) {
      for (int m = begin; m < end; ++m) {
        float* to = out + size_t(m) * outputs_;
        if (gated_) {
          widen(k_, y(m), outputs_, to);
        } else {
          std::memcpy(to, y(m), row_bytes);
        }
      }
    });
  });
}

Cache::Cache(const Kernels& kernels, int threads, int heads, int kv_heads, int head_dim, int window,
             int blocks)
    : k_(kernels), team_(threads), attend_(k_, team_) {
  shape_.heads = heads, shape_.kv_heads = kv_heads, shape_.head_dim = head_dim;
  shape_.window = window, shape_.out_stride = round_up(heads * head_dim, kPanel);
  shape_.block_bytes = kv_heads * CacheLayout(head_dim, kernels.dtype).head_bytes();
  pool_ = Memory(blocks * shape_.block_bytes);
  shape_.pool = pool_.data();
}

AttentionArgs Cache::args(const Rows& rows) const {
  AttentionArgs a = shape_;
  a.q = q_.data(), a.out = out_.data();
  a.positions = rows.positions, a.sequences = rows.sequences, a.tables = rows.tables;
  a.table_stride = rows.table_stride, a.rows = rows.count;
  return a;
}

char* Cache::query(int t, int h, int rows) const {
  const int group = heads() / kv_heads();
  const size_t at = (size_t(h / group) * rows + t) * group + h % group;
  return q_.data() + at * round_up(head_dim(), kPanel) * k_.x_bytes;
}

int Cache::rope(const Rows& rows, const float* qkv, const float* cos, const float* sin, float* q) {
  const int D = head_dim(), H = heads();
  q_ = Memory(size_t(rows.count) * H * round_up(D, kPanel) * k_.x_bytes);
  const RopeArgs turn{qkv, (H + 2 * kv_heads()) * D, q_.data(), cos, sin, args(rows)};
  std::atomic<int> bad{rows.count};
  team_.run([&](int thread) {
    team_.each(thread, rows.count, [&](int t) {
      if (!k_.rope(turn, t))
        for (int known = bad; t < known && !bad.compare_exchange_weak(known, t);) {
        }
      for (int h = 0; h < H; ++h)
        widen(k_, query(t, h, rows.count), D, q + (size_t(t) * H + h) * D);
    });
  });
  return bad < rows.count ? int(bad) : -1;
}

void Cache::attend(const Rows& rows, const float* q, int tile_queries, int parts, float* out) {
  const int D = head_dim(), H = heads(), group = H / kv_heads();
  q_ = Memory(size_t(rows.count) * H * round_up(D, kPanel) * k_.x_bytes);
  out_ = Memory(size_t(rows.count) * shape_.out_stride * k_.x_bytes);
  AttentionArgs a = args(rows);
  a.tile_rows = tile_rows(group, tile_queries);
  a.parts = parts > 0 ? parts : attend_.parts(a);
  attend_.prepare(a);
  team_.run([&](int thread) {
    team_.each(thread, rows.count, [&](int t) {
      for (int h = 0; h < H; ++h)
        k_.convert(q + (size_t(t) * H + h) * D, D, query(t, h, rows.count));
    });
    attend_.run(a);
    team_.each(thread, rows.count, [&](int t) {
      const char* from = out_.data() + size_t(t) * shape_.out_stride * k_.x_bytes;
      widen(k_, from, H * D, out + size_t(t) * H * D);
    });
  });
}

int rmsnorm(const Kernels& kernels, const float* x, const float* weight, float eps, int rows, int n,
            float* full, float* rounded) {
  std::vector<float> in(round_up(n, kPanel)), scale(in.size()), out(in.size()), as_x(in.size());
  std::memcpy(scale.data(), weight, n * sizeof(float));
  int bad = -1;
  for (int t = rows - 1; t >= 0; --t) {
    std::memcpy(in.data(), x + size_t(t) * n, n * sizeof(float));
    if (!kernels.rmsnorm(in.data(), scale.data(), eps, n, as_x.data(), out.data())) bad = t;
    std::memcpy(full + size_t(t) * n, out.data(), n * sizeof(float));
    widen(kernels, as_x.data(), n, rounded + size_t(t) * n);
  }
  return bad;
}

std::unique_ptr<Model> head_alone(const std::string& isa, Dtype dtype, int threads,
                                  const void* weight, Source type, int vocab, int hidden) {
  // One head of size 2 and no position: a model must have heads, and nothing attends.
  const Shape shape{vocab, hidden, 1, 0, 1, 1, 2, 0, 0, 0.f, true};
  const float frequency = 0.f;
  auto model = std::make_unique<Model>(shape, dtype, isa, threads, &frequency);
  model->load_matrix(Part::kHead, 0, 0, weight, type, vocab, hidden);
  return model;
}

}  // namespace urial::cpu
