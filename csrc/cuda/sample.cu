// One block of threads a row, and no sort. Every cut that sampling makes, the k-th token, the end
// of the nucleus, the token drawn, is the first of the sorted tokens where a running count or mass
// exceeds a bound. It is found by descending through histograms of ever smaller ranges of the
// order, each from one pass over the row, until a range holds one token.
//
// A mass is p = e^(score - largest) in fp32, as an integer of 2^-43: sums are exact, whatever the
// order of the threads, and 2^20 of them stay below 2^64. So tokens 30 nats below the largest have
// none, and sums are right to about 2^-22: a draw that comes nearer to a boundary may differ from
// that of fp64.
#include "cuda/sample.h"
#include "cuda/warp.h"
#include "philox.h"

namespace urial::cuda {
namespace {

using u64 = unsigned long long;  // the name that CUDA's atomics know

constexpr int kThreads = 1024, kLoads = 4, kBinBits = 8, kBins = 1 << kBinBits;
constexpr float kMassOne = 8796093022208.f;  // 2^43
// Bins of the first histogram, which is by distance from the largest score: fine enough that the
// tokens of a typical row do not queue for one bin, wide enough for all that have a mass.
constexpr float kBinsPerNat = 8;

// A score and its id as one number whose rising order is that of rising score, then falling id; a
// NaN is the largest.
__device__ u64 key_of(float score, int id) {
  const uint32_t bits = __float_as_uint(score + 0.f);  // -0 becomes 0
  const uint32_t rising = score != score ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
  return u64(rising) << kIdBits | u64(kMaxVocab - 1 - id);
}

struct Row {
  const float* z;
  int vocab;
  float temperature, largest;  // the largest score

  __device__ float score(float logit) const {
    return temperature > 0 ? logit / temperature : logit;
  }
  __device__ float p(float score) const { return expf(score - largest); }
  __device__ int bin(float score) const {
    return int(fminf((largest - score) * kBinsPerNat, kBins - 1));
  }
  // f(id, score) of a thread's share. Several loads at once: 32 warps alone do not hide their
  // latency.
  template <class Each>
  __device__ void each(Each f) const {
    for (int first = int(threadIdx.x); first < vocab; first += kThreads * kLoads) {
      float v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) v[i] = z[min(first + i * kThreads, vocab - 1)];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (first + i * kThreads < vocab) f(first + i * kThreads, score(v[i]));
    }
  }
};

struct Histogram {
  uint32_t count[kBins], low[kBins], high[kBins];  // low and high words of the mass
  int32_t id[kBins];                               // of some token in the bin

  __device__ u64 mass(int bin) const { return u64(high[bin]) << 32 | low[bin]; }
  __device__ void clear() {
    __syncthreads();
    if (threadIdx.x < kBins) count[threadIdx.x] = low[threadIdx.x] = high[threadIdx.x] = 0;
    __syncthreads();
  }
};

// A thread's way into a histogram. What follows each other into the same bin is added at once: else
// equal scores would queue for it. Shared memory adds words of 32 bits, so the carry is ours.
struct Adder {
  Histogram& h;
  int bin = -1, id = 0;
  uint32_t count = 0;
  u64 mass = 0;

  __device__ void add(int to, u64 more, int of) {
    if (to != bin) flush(), bin = to, count = 0, mass = 0;
    ++count, mass += more, id = of;
  }
  __device__ void flush() const {
    if (bin < 0) return;
    const uint32_t low = uint32_t(mass), old = atomicAdd(&h.low[bin], low);
    atomicAdd(&h.high[bin], uint32_t(mass >> 32) + (old + low < old));
    atomicAdd(&h.count[bin], count);
    h.id[bin] = id;
  }
};

// A token or a bin of them, and what stands before it.
struct Place {
  int at;  // the bin; kBins: none
  u64 count, mass;
};

struct Shared {
  Histogram coarse, fine;
  Place found;
  u64 largest, likely;
};

// The first bin where the running mass, or else count, exceeds the bound.
__device__ Place find(Shared& s, const Histogram& h, bool by_mass, u64 bound, Place before) {
  __syncthreads();  // the histogram is complete, and nobody reads s.found any more
  if (threadIdx.x < kWarp) {
    const Warp warp;
    unsigned over = 0;
    for (int first = 0; first < kBins && !over; first += kWarp) {
      const int bin = first + warp.lane;
      const u64 count = before.count + warp.running(u64(h.count[bin]));
      const u64 mass = before.mass + warp.running(h.mass(bin));
      over = __ballot_sync(kAll, (by_mass ? mass : count) > bound);
      if (over && warp.lane == __ffs(int(over)) - 1)
        s.found = {bin, count - h.count[bin], mass - h.mass(bin)};
      before.count = __shfl_sync(kAll, count, kWarp - 1);
      before.mass = __shfl_sync(kAll, mass, kWarp - 1);
    }
    if (!over && warp.lane == 0) s.found = {kBins, before.count, before.mass};
  }
  __syncthreads();
  return s.found;
}

// The first token where the running mass, or else count, exceeds the bound: its id, and the sums
// with it. Where none does, the sums of all. s.coarse stands.
__device__ Place cut(const Row& row, Shared& s, bool by_mass, u64 bound) {
  Place found = find(s, s.coarse, by_mass, bound, {0, 0, 0});
  if (found.at == kBins) return found;
  // Keys of the bin and a little more on both sides, whatever rounding does at its ends.
  const int coarse = found.at;
  u64 low = key_of(row.largest - float(coarse + 2) / kBinsPerNat, kMaxVocab - 1);
  u64 high = key_of(row.largest - float(coarse - 1) / kBinsPerNat, 0);
  const Histogram* h = &s.coarse;
  for (; h->count[found.at] > 1; h = &s.fine) {
    const int shift = max(0, 64 - kBinBits - __clzll(int64_t(high - low)));
    s.fine.clear();
    Adder adder{s.fine};
    row.each([&](int id, float score) {
      if (row.bin(score) != coarse) return;
      const u64 key = key_of(score, id), mass = u64(row.p(score) * kMassOne);
      if (low <= key && key <= high && mass > 0) adder.add(int((high - key) >> shift), mass, id);
    });
    adder.flush();
    found = find(s, s.fine, by_mass, bound, found);
    high -= u64(found.at) << shift;
    if ((high - low) >> shift) low = high - ((u64(1) << shift) - 1);
  }
  return {h->id[found.at], found.count + 1, found.mass + h->mass(found.at)};
}

// Top-k, top-p, min-p and one draw: each keeps a beginning of the order, known by its mass.
__device__ int draw(const SampleArgs& a, int m, const Row& row, Shared& s) {
  s.coarse.clear();
  Adder adder{s.coarse};
  u64 likely = 0;  // the mass of what min-p keeps
  const float least = a.min_p[m];
  row.each([&](int id, float score) {
    const float p = row.p(score);
    const u64 mass = u64(p * kMassOne);
    if (mass > 0) adder.add(row.bin(score), mass, id);
    if (p >= least) likely += mass;
  });
  adder.flush();
  likely = Warp().sum(likely);
  if (threadIdx.x % kWarp == 0) atomicAdd(&s.likely, likely);
  u64 kept = cut(row, s, false, a.top_k[m] > 0 ? a.top_k[m] - 1 : ~u64(0)).mass;
  if (a.top_p[m] < 1) {  // running >= x, of real numbers, is running > ceil(x) - 1 of integers
    const double nucleus = ceil(double(a.top_p[m]) * double(kept));
    kept = cut(row, s, true, nucleus > 1 ? u64(nucleus) - 1 : 0).mass;
  }
  kept = min(kept, s.likely);
  // u * kept, rounded down, with u = (2 x + 1) / 2^33.
  const u64 x = philox(a.seed[m], a.position[m], a.sample[m]);
  return cut(row, s, true, __umul64hi(kept, (2 * x + 1) << 31)).at;
}

// f(i) of a thread's share of what row m owns of a ragged list.
template <class Each>
__device__ void own(const int32_t* offsets, int m, Each f) {
  for (int i = offsets[m] + int(threadIdx.x); i < offsets[m + 1]; i += kThreads) f(i);
}

__device__ float penalised(const SampleArgs& a, int m, int i, float v) {
  const int count = a.penalty_counts[i];
  if (a.penalty_repeats[i]) v = v > 0 ? v / a.repetition[m] : v * a.repetition[m];
  return count > 0 ? v - (a.frequency[m] * float(count) + a.presence[m]) : v;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(SampleArgs a) {
  __shared__ Shared s;
  const int m = int(blockIdx.x);
  float *z = a.z + size_t(m) * a.stride, *banned = a.scratch + a.penalty_offsets[a.rows];
  if (threadIdx.x == 0) s.largest = s.likely = 0;
  // All are kept before one is changed: an id may have a penalty and be banned.
  own(a.penalty_offsets, m, [&](int i) { a.scratch[i] = z[a.penalty_ids[i]]; });
  own(a.banned_offsets, m, [&](int i) { banned[i] = z[a.banned_ids[i]]; });
  __syncthreads();
  own(a.penalty_offsets, m, [&](int i) { z[a.penalty_ids[i]] = penalised(a, m, i, a.scratch[i]); });
  __syncthreads();
  own(a.banned_offsets, m, [&](int i) { z[a.banned_ids[i]] = -INFINITY; });
  __syncthreads();
  Row row{z, a.vocab, a.temperature[m], 0};
  u64 largest = 0;
  row.each([&](int id, float score) { largest = max(largest, key_of(score, id)); });
  largest = Warp().largest(largest);
  if (threadIdx.x % kWarp == 0) atomicMax(&s.largest, largest);
  __syncthreads();
  int token = kMaxVocab - 1 - int(s.largest % kMaxVocab);
  row.largest = row.score(z[token]);
  const bool possible = row.largest - row.largest == 0.f;  // not so for NaN and for infinity
  if (possible && row.temperature > 0) token = draw(a, m, row, s);
  __syncthreads();
  own(a.penalty_offsets, m, [&](int i) { z[a.penalty_ids[i]] = a.scratch[i]; });
  own(a.banned_offsets, m, [&](int i) { z[a.banned_ids[i]] = banned[i]; });
  if (threadIdx.x == 0) a.token_ids[m] = token, a.possible[m] = possible;
}

}  // namespace

cudaError_t sample(const SampleArgs& args, cudaStream_t stream) {
  return launch(sample_kernel, args.rows, kThreads, args, stream);
}

}  // namespace urial::cuda
