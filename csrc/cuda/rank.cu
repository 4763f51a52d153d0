#include "cuda/rank.h"
#include "cuda/warp.h"

namespace urial::cuda {
namespace {

// A warp takes a tile, 32 values a lane in registers, so that it is read once. About 60 registers
// leave half of a multiprocessor's warps, each with 4 KB in flight: many times what hides the
// memory's latency. And since a warp is all that a tile needs, no thread waits at a barrier.
constexpr int kEach = kTile / kWarp, kWide = 4;
constexpr int kWarps = 8, kThreads = kWarps * kWarp;

// A lane's values of one tile: kWide beside each other of every kWarp * kWide columns.
struct Values {
  float v[kEach];

  __device__ static int column(int i) {
    return i / kWide * kWarp * kWide + int(threadIdx.x) % kWarp * kWide + i % kWide;
  }
  __device__ Values(const float* z, int columns, float padding) {
#pragma unroll
    for (int i = 0; i < kEach; i += kWide) {
      if (column(i) + kWide <= columns) {
        const float4 wide = *reinterpret_cast<const float4*>(z + column(i));
        v[i] = wide.x, v[i + 1] = wide.y, v[i + 2] = wide.z, v[i + 3] = wide.w;
      } else {
#pragma unroll
        for (int j = i; j < i + kWide; ++j) v[j] = column(j) < columns ? z[column(j)] : padding;
      }
    }
  }
};

// A row's part of one tile.
struct Tile {
  const float* z;
  int columns, first, index;  // columns that the vocabulary has; place in the vocabulary

  __device__ Tile(const Block& b, int row, int tile)
      : z(b.z + size_t(row) * b.stride + tile * kTile),
        columns(b.columns - tile * kTile < kTile ? b.columns - tile * kTile : kTile),
        first(b.first + tile * kTile),
        index(row * tiles_of(b.vocab) + first / kTile) {}
};

template <bool kTwoHeads>
__global__ void __launch_bounds__(kThreads) tile_kernel(TileArgs a) {
  const int tiles = tiles_of(a.block.columns);
  const int task = int(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp, row = task / tiles;
  if (row >= a.block.rows) return;
  const Warp warp;
  const Tile tile(a.block, row, task % tiles);
  const float target = a.target_logit[row];
  const Values z(tile.z, tile.columns, kPadLogit);
  const Values other(kTwoHeads ? a.other + (tile.z - a.block.z) : tile.z, tile.columns, kPadLogit);
  TileStats s{-INFINITY, 0, 0, 0, 0, 0, true};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    s.max = fmaxf(s.max, z.v[i]);
    s.finite = s.finite && z.v[i] - z.v[i] == 0.f;  // not so for NaN and for infinity
    s.greater += z.v[i] > target, s.equal += z.v[i] == target;
  }
  s.max = warp.largest(s.max);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    // e^-104 is 0 in fp32: so is then the weight of whatever lies far below, and nothing is
    // infinite.
    const float d = fmaxf(z.v[i] - s.max, -104.f), e = expf(d);
    s.sum += e;
    s.dot = fmaf(e, d, s.dot);
    if (kTwoHeads) s.cross = fmaf(e, z.v[i] - other.v[i], s.cross);
  }
  s.sum = warp.sum(s.sum), s.dot = warp.sum(s.dot), s.cross = warp.sum(s.cross);
  s.greater = warp.sum(s.greater), s.equal = warp.sum(s.equal);
  s.finite = __all_sync(kAll, s.finite);
  // What pads the tile is no token: it shows only where tokens have the value of the padding.
  if (target == kPadLogit) s.equal -= kTile - tile.columns;
  if (s.max == kPadLogit) s.sum -= float(kTile - tile.columns);
  if (warp.lane > 0) return;
  a.stats[tile.index] = s;
  const int y = a.targets[row] - tile.first;
  if (a.seen && y >= 0 && y < tile.columns) a.seen[row] = tile.z[y];
}

// Puts an entry into a sorted list that ends with one that comes after it: 32 entries at a time,
// from the end, everything after it moves by one.
__device__ void insert(Entry* list, int k, Entry e, const Warp& warp) {
  for (int base = (k - 1) / kWarp * kWarp;; base -= kWarp) {
    const int i = base + warp.lane;
    const Entry mine = list[i < k ? i : k - 1];
    const bool moves = i < k && e.before(mine);
    const unsigned moving = __ballot_sync(kAll, moves);
    if (moves && i + 1 < k) list[i + 1] = mine;
    __syncwarp();
    if (base > 0 && (moving & 1)) continue;
    const int place = moving ? base + __ffs(int(moving)) - 1 : base + kWarp;
    if (warp.lane == 0) list[place] = e;
    __syncwarp();
    return;
  }
}

// One warp a row. Of a tile the first entry that is not in the list yet is looked for until it
// would not enter, so few are moved.
__global__ void __launch_bounds__(kWarp) top_k_kernel(TopArgs a) {
  const int row = int(blockIdx.x);
  const Warp warp;
  Entry* list = a.entries + size_t(row) * a.k;
  const Entry none{-INFINITY, INT32_MAX};
  for (int i = a.block.first == 0 ? warp.lane : a.k; i < a.k; i += kWarp) list[i] = none;
  __syncwarp();
  for (int t = 0; t < tiles_of(a.block.columns); ++t) {
    const Tile tile(a.block, row, t);
    if (a.stats[tile.index].max < list[a.k - 1].value) continue;
    const Values z(tile.z, tile.columns, NAN);  // comes before nothing, so it is never taken
    for (Entry last{INFINITY, -1};;) {
      Entry best = none;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const Entry e{z.v[i], tile.first + Values::column(i)};
        if (last.before(e) && e.before(best)) best = e;
      }
      for (int far = kWarp / 2; far > 0; far /= 2) {
        const Entry e{__shfl_xor_sync(kAll, best.value, far), __shfl_xor_sync(kAll, best.id, far)};
        if (e.before(best)) best = e;
      }
      if (!best.before(list[a.k - 1])) break;
      __syncwarp();
      insert(list, a.k, best, warp);
      last = best;
    }
  }
}

// One warp a row.
__global__ void __launch_bounds__(kWarp) finish_kernel(FinishArgs a) {
  const int row = int(blockIdx.x), tiles = tiles_of(a.vocab);
  const Warp warp;
  const float target = a.target_logit[row];
  const RowStats mine = merge_tiles(a.stats + size_t(row) * tiles, tiles, warp);
  for (size_t i = size_t(row) * a.k + warp.lane; i < size_t(row + 1) * a.k; i += kWarp) {
    a.top_ids[i] = a.entries[i].id;
    a.top_logprobs[i] = mine.logprob(a.entries[i].value);
  }
  if (a.kl)
    a.kl[row] = mine.divergence(merge_tiles(a.other_stats + size_t(row) * tiles, tiles, warp));
  if (warp.lane > 0) return;
  a.rank[row] = int32_t(mine.greater + 1);
  a.ties[row] = int32_t(mine.equal - 1);  // the target equals itself
  a.logprob[row] = mine.logprob(target), a.entropy[row] = float(mine.entropy);
  a.finite[row] = mine.finite;
  if (a.seen && __float_as_uint(a.seen[row]) != __float_as_uint(target)) atomicAdd(a.mismatches, 1);
}

__global__ void take_kernel(TakeArgs a) {
  const int row = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (row < a.rows) a.out[row] = a.z[size_t(row) * a.stride + (a.ids ? a.ids[row] : row)];
}

}  // namespace

cudaError_t take_logits(const TakeArgs& args, cudaStream_t stream) {
  return launch(take_kernel, (args.rows + kThreads - 1) / kThreads, kThreads, args, stream);
}

cudaError_t rank_tile(const TileArgs& args, cudaStream_t stream) {
  const int64_t tasks = int64_t(args.block.rows) * tiles_of(args.block.columns);
  const auto kernel = args.other ? tile_kernel<true> : tile_kernel<false>;
  return launch(kernel, (tasks + kWarps - 1) / kWarps, kThreads, args, stream);
}

cudaError_t top_k_tile(const TopArgs& args, cudaStream_t stream) {
  return launch(top_k_kernel, args.k > 0 ? args.block.rows : 0, kWarp, args, stream);
}

cudaError_t rank_finish(const FinishArgs& args, cudaStream_t stream) {
  return launch(finish_kernel, args.rows, kWarp, args, stream);
}

}  // namespace urial::cuda
