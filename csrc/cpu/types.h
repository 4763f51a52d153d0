// What every part of the CPU backend shares: the packed matrix, the kernel table, sizes.
//
// Letters: T rows of a call, C hidden, F feed-forward, H query heads, K key/value heads, G = H / K,
// D head size, V vocabulary.
#pragma once
#include <cstddef>
#include <cstdint>

#include "rank.h"

namespace urial::cpu {

// A panel is 32 output columns of a packed matrix; it is the unit of work and of padding, in k as
// well.
constexpr int kPanel = 32;
// Tokens in a block of the KV-cache: two panels of keys. Attention reduces a unit of blocks, at
// absolute multiples of it, at a time.
constexpr int kBlock = 64, kUnit = 4, kUnitKeys = kUnit * kBlock;
// Columns of the vocabulary whose statistics are reduced together, then merged in order.
constexpr int kTile = 256;
// Largest head size, and largest number of queries that attention handles as one tile.
constexpr int kMaxHead = 256;
constexpr int kMaxQueries = 128;

// Always inlined: these are compiled once for each instruction set, and a shared copy could hold
// the wrong one's code.
#define URIAL_INLINE inline __attribute__((always_inline))

URIAL_INLINE constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// From one row of n items of `bytes` to the next, in items: whole panels, and an odd number of
// cache lines. Rows whose distance is a power of two all fall into one set of the first cache.
URIAL_INLINE constexpr int row_stride(int n, size_t bytes) {
  const int whole = round_up(n, kPanel), line = 64 / int(bytes);
  return whole / line % 2 ? whole : whole + line;
}

// About this many queries make a tile of attention: enough rows to reuse each key, few enough to
// share out.
constexpr int kTileQueries = 96;
// Rows of the call in such a tile, at least one: each has `group` queries to a key head.
URIAL_INLINE constexpr int tile_rows(int group, int queries = kTileQueries) {
  return queries > group ? queries / group : 1;
}

enum class Dtype { kBf16, kF32 };

URIAL_INLINE constexpr size_t bytes_of(Dtype t) { return t == Dtype::kBf16 ? 2 : 4; }
// How many consecutive k stand beside each other in a packed column: what one dot-product
// instruction consumes.
URIAL_INLINE constexpr int step_of(Dtype t) { return t == Dtype::kBf16 ? 2 : 1; }

// y = x W^T with W [n, k] stored as [n / 32 panels][k / step][32 columns][step], zero-padded.
// Lanes run over columns, so a sum over k has one order for one row and for a thousand.
struct Packed {
  void* data = nullptr;
  int n = 0;
  int k = 0;
  Dtype dtype = Dtype::kF32;

  URIAL_INLINE int panels() const { return (n + kPanel - 1) / kPanel; }
  URIAL_INLINE int steps() const { return round_up(k, kPanel) / step_of(dtype); }
  URIAL_INLINE size_t panel_bytes() const {
    return size_t(round_up(k, kPanel)) * kPanel * bytes_of(dtype);
  }
  URIAL_INLINE size_t bytes() const { return panels() * panel_bytes(); }
  URIAL_INLINE const void* panel(int p) const {
    return static_cast<const char*>(data) + p * panel_bytes();
  }
};

enum class Epilogue {
  kStore,    // out[m][n] = y + bias
  kAdd,      // out[m][n] += y + bias: the residual stream
  kSiluMul,  // act[m][n / 2] = silu(gate) * up; a panel holds 16 gate columns, then their 16 up
             // columns
};

struct MatmulArgs {
  const void* x;  // [m, >= padded k] activations, element type of the kernel table
  ptrdiff_t x_stride;
  int m;
  Packed w;
  const float* bias;  // [padded n] or null
  Epilogue epilogue;
  void* out;  // rows padded to whole panels, so that every column may be written
  ptrdiff_t out_stride;
  // What the thread will read after panel `last`, for the prefetch; else the panel that follows.
  int last = -1;
  const void* then = nullptr;
  ptrdiff_t then_stride = 0;  // bytes from a panel of it to the next
};

// One layer's attention. Queries are [K][T * G][D padded to whole panels], so that all the queries
// of a key head are one matrix.
struct AttentionArgs {
  const void* q;
  void* out;  // [T][padded H * D], activations
  ptrdiff_t out_stride;
  char* pool;                // the KV-cache; a block holds all layers
  size_t block_bytes;        // stride between blocks
  size_t layer_offset;       // of this layer within a block
  const int32_t* positions;  // [T]
  const int32_t* sequences;  // [T] row of tables
  const int32_t* tables;     // [B][table_stride] physical block by absolute block index
  int table_stride;
  int rows, heads, kv_heads, head_dim;
  int window;  // keys visible including itself; <= 0 for all
  int tile_rows;
  // A call of one tile may be computed in parts, runs of its units. Each unit's result then stands
  // here until all are there: [K][table_units()] of part_floats(queries of the tile).
  int parts;
  float* part_memory;

  URIAL_INLINE int table_units() const { return (table_stride + kUnit - 1) / kUnit; }

  // Maximum, sum and [padded D] values of each query.
  URIAL_INLINE size_t part_floats(int queries) const {
    return size_t(queries) * (2 + round_up(head_dim, kPanel));
  }
};

// Where a key head's keys and values lie inside a block's layer, in bytes.
struct CacheLayout {
  size_t key_bytes, value_bytes;
  URIAL_INLINE CacheLayout(int head_dim, Dtype t)
      : key_bytes(size_t(kBlock) * round_up(head_dim, kPanel) * bytes_of(t)),
        value_bytes(key_bytes) {}
  URIAL_INLINE size_t head_bytes() const { return key_bytes + value_bytes; }
};

struct RopeArgs {
  const float* qkv;  // [T][stride]: H queries, K keys, K values of D each
  ptrdiff_t stride;
  void* q;                 // [K][T * G][padded D] activations
  const float *cos, *sin;  // [positions][D / 2]
  AttentionArgs cache;
};

// A kernel table: one per instruction set and dtype. Functions work on a slice of a task; threads
// are the caller's.
struct Kernels {
  const char* isa;
  Dtype dtype;
  size_t x_bytes;  // size of an activation element
  void (*matmul)(const MatmulArgs&, int panel_begin, int panel_end);
  int (*panels_at_once)(int m);  // that matmul takes for m rows; slices are best whole such groups
  // Root-mean-square norm of one row; x and/or full may be null. False when the row is not finite.
  bool (*rmsnorm)(const float* in, const float* weight, float eps, int n, void* x, float* full);
  void (*convert)(const float* in, int n, void* x);  // fp32 -> activations, padded to whole panels
  bool (*rope)(const RopeArgs&, int row);            // false when the row is not finite
  void (*attention)(const AttentionArgs&, int kv_head, int tile);
  // The same for a call of one tile, in two steps: each of the parts, then all that they left.
  void (*attention_part)(const AttentionArgs&, int kv_head, int part);
  void (*attention_merge)(const AttentionArgs&, int kv_head);
  // n a multiple of 32. other may be null. Counts are against z_y over all n columns.
  TileStats (*stats)(const float* z, const float* other, int n, float z_y);
  // Index of the largest of n logits, the smallest among equals.
  int (*argmax)(const float* z, int n);
};

// Null when this machine or this build does not have the instruction set.
const Kernels* find_kernels(const char* isa, Dtype dtype);
// Names of the instruction sets of this build that this machine runs, best first; count returned.
int available_isas(const char** names, int capacity);

}  // namespace urial::cpu
