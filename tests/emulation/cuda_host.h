// What CUDA source means, on a CPU, for tests without a GPU. Include it in place of the runtime.
//
// Blocks run one after the other. A block's threads are fibers of one thread: each runs until it
// waits for others (a barrier, a shuffle, a vote) or ends, so between two waits nothing
// interleaves, and what the kernel computes depends on the order in which threads run exactly where
// it has a race. emulation_order() chooses that order: tests compare the results of several.
//
// Errors that end a launch, in words: a barrier or an operation of a warp that not all arrive at, a
// lane that its own mask leaves out, lanes that meet in different operations. Shared memory is
// filled with garbage, other garbage in each order, before each block.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define URIAL_ASAN 1
#else
#define URIAL_ASAN 0
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("urial_shared")))
// The linker's names for the ends of that section.
extern "C" {
extern char __start_urial_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_urial_shared[] __attribute__((weak, visibility("hidden")));
}

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct CUstream_st*;
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};

namespace emulation {

constexpr unsigned kLanes = 32;

enum class Wait { kNone, kBarrier, kWarp, kDone };
enum class Meet { kSync, kVote, kShuffle };
constexpr const char* kMeets[] = {"__syncwarp", "a vote", "a shuffle"};

struct Fiber {
  unsigned index = 0;
  Wait wait = Wait::kDone;
  // An operation of the warp: what it is, who takes part, what is brought, whose value is wanted.
  Meet meet = Meet::kSync;
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;

  bool fresh = true;  // has never run on its stack
  char* stack = nullptr;
  ucontext_t context;
  jmp_buf jump;
  void* fake_stack = nullptr;
};

class Machine {
 public:
  uint3 block_index{}, block_size{}, grid_size{};
  Fiber* current = nullptr;
  int order = 0;
  std::string error;

  cudaError_t run(unsigned grid, unsigned block, const std::function<void()>& body) {
    error.clear();
    body_ = &body, block_size = {block, 1, 1}, grid_size = {grid, 1, 1};
    random_.seed(unsigned(order));
    grow(block);
    for (const unsigned b : sequence(grid)) {
      block_index = {b, 0, 0};
      fill_shared();
      run_block();
      if (error.empty()) continue;
      for (const auto& f : fibers_) f->fresh = true;  // they stand somewhere in the kernel
      return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
  }

  // On a fiber: gives way to the scheduler until what it waits for has happened.
  void wait(Wait what) {
    Fiber& me = *current;
    me.wait = what;
    if (!_setjmp(me.jump)) {
#if URIAL_ASAN
      __sanitizer_start_switch_fiber(&me.fake_stack, main_stack_, main_stack_size_);
#endif
      _longjmp(main_jump_, 1);
    }
#if URIAL_ASAN
    __sanitizer_finish_switch_fiber(me.fake_stack, &main_stack_, &main_stack_size_);
#endif
  }

  uint64_t meet(Meet what, unsigned mask, uint64_t value, unsigned source) {
    Fiber& me = *current;
    const unsigned lane = me.index % kLanes;
    if (!(mask >> lane & 1)) fail(me, "takes part in a warp's operation that its mask leaves out");
    if (what == Meet::kShuffle && !(mask >> source & 1)) fail(me, "asks a lane outside the mask");
    me.meet = what, me.mask = mask, me.value = value, me.source = source;
    wait(Wait::kWarp);
    return me.result;
  }

 private:
  static constexpr size_t kStack = URIAL_ASAN ? 256 << 10 : 64 << 10, kGuard = 4096;

  // Ends the launch: the scheduler looks at the error whenever a fiber gives way.
  void fail(const Fiber& f, const std::string& what) {
    error = "thread " + std::to_string(f.index) + " of block " + std::to_string(block_index.x) +
            " " + what;
    wait(Wait::kNone);
  }

  std::vector<unsigned> sequence(unsigned n) {
    std::vector<unsigned> order_of(n);
    for (unsigned i = 0; i < n; ++i) order_of[i] = order == 1 ? n - 1 - i : i;
    if (order > 1) std::shuffle(order_of.begin(), order_of.end(), random_);
    return order_of;
  }

  // Byte by byte, past the redzones that a sanitizer puts between variables.
  __attribute__((no_sanitize("address"))) void fill_shared() {
    if (!__start_urial_shared) return;
    for (volatile char* p = __start_urial_shared; p < __stop_urial_shared; ++p)
      *p = order < 2 ? (order ? 0x5a : -0x33) : char(random_());
  }

  void grow(unsigned count) {
    while (fibers_.size() < count) {
      auto f = std::make_unique<Fiber>();
      f->index = unsigned(fibers_.size());
      void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      mprotect(memory, kGuard, PROT_NONE);
      f->stack = static_cast<char*>(memory) + kGuard;
      fibers_.push_back(std::move(f));
    }
  }

  static void main_of_fiber();

  void start(Fiber& f) {
#if URIAL_ASAN
    __asan_unpoison_memory_region(f.stack, kStack - kGuard);
#endif
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = kStack - kGuard;
    makecontext(&f.context, &Machine::main_of_fiber, 0);
  }

  void resume(Fiber& f) {
    current = &f, f.wait = Wait::kNone;
    const bool fresh = f.fresh;
    if (fresh) start(f), f.fresh = false;
    if (!_setjmp(main_jump_)) {
#if URIAL_ASAN
      __sanitizer_start_switch_fiber(&main_fake_stack_, f.stack, kStack - kGuard);
#endif
      if (fresh) setcontext(&f.context);
      _longjmp(f.jump, 1);
    }
#if URIAL_ASAN
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
  }

  // Each warp goes as far as it can by itself before the next one starts: the largest distance that
  // the barriers allow.
  void run_block() {
    const unsigned threads = block_size.x, warps = (threads + kLanes - 1) / kLanes;
    std::vector<char> ready(threads, 1);
    for (unsigned left = threads; left > 0 && error.empty();) {
      for (const unsigned w : sequence(warps))
        if (!run_warp(w, std::min(kLanes, threads - w * kLanes), ready)) return;
      left = release(ready);
    }
  }

  bool run_warp(unsigned warp, unsigned lanes, std::vector<char>& ready) {
    const unsigned first = warp * kLanes;
    for (bool moved = true; moved;) {
      moved = false;
      for (const unsigned lane : sequence(lanes)) {
        if (!ready[first + lane]) continue;
        ready[first + lane] = 0, moved = true;
        resume(*fibers_[first + lane]);
        if (!error.empty()) return false;
      }
      for (unsigned lane = 0; lane < lanes; ++lane) complete(first, lanes, lane, ready);
      if (!error.empty()) return false;
    }
    return true;
  }

  // Ends the operation that a lane waits for, once all of its mask are there.
  void complete(unsigned first, unsigned lanes, unsigned lane, std::vector<char>& ready) {
    const Fiber& f = *fibers_[first + lane];
    if (f.wait != Wait::kWarp || ready[first + lane]) return;
    uint64_t vote = 0;
    for (unsigned i = 0; i < kLanes; ++i) {
      if (!(f.mask >> i & 1)) continue;
      if (i >= lanes) return;
      const Fiber& other = *fibers_[first + i];
      if (other.wait != Wait::kWarp || ready[first + i] || other.mask != f.mask) return;
      if (other.meet != f.meet) {
        error = "lanes " + std::to_string(lane) + " and " + std::to_string(i) + " meet in " +
                kMeets[int(f.meet)] + " and " + kMeets[int(other.meet)];
        return;
      }
      vote |= uint64_t(other.value != 0) << i;
    }
    for (unsigned i = 0; i < lanes; ++i) {
      if (!(f.mask >> i & 1)) continue;
      Fiber& other = *fibers_[first + i];
      other.result = f.meet == Meet::kVote ? vote : fibers_[first + other.source]->value;
      ready[first + i] = 1;
    }
  }

  // All wait, or have ended: opens the barrier if all stand at it. How many have not ended.
  unsigned release(std::vector<char>& ready) {
    const unsigned threads = block_size.x;
    unsigned done = 0, barrier = 0;
    for (unsigned i = 0; i < threads; ++i) {
      done += fibers_[i]->wait == Wait::kDone;
      barrier += fibers_[i]->wait == Wait::kBarrier;
    }
    if (barrier == threads) {
      std::fill(ready.begin(), ready.end(), 1);
    } else if (done < threads) {
      const auto stuck = std::find_if(fibers_.begin(), fibers_.begin() + threads,
                                      [](const auto& f) { return f->wait == Wait::kWarp; });
      const bool warp = stuck != fibers_.begin() + threads;
      error = "block " + std::to_string(block_index.x) + ": ";
      error += warp ? "thread " + std::to_string((*stuck)->index) + " waits in " +
                          kMeets[int((*stuck)->meet)] + " for lanes that do not come"
                    : "__syncthreads is reached by " + std::to_string(barrier) + " of " +
                          std::to_string(threads) + " threads";
    }
    return threads - done;
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::mt19937 random_;
  jmp_buf main_jump_;
  const void* main_stack_ = nullptr;
  size_t main_stack_size_ = 0;
  void* main_fake_stack_ = nullptr;
};

inline Machine machine;

inline void Machine::main_of_fiber() {
#if URIAL_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &machine.main_stack_, &machine.main_stack_size_);
#endif
  for (;;) {
    (*machine.body_)();
    machine.wait(Wait::kDone);
  }
}

inline cudaError_t run(unsigned grid, unsigned block, cudaStream_t,
                       const std::function<void()>& body) {
  return machine.run(grid, block, body);
}

template <class T>
T meet(Meet what, unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a register holds at most 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = machine.meet(what, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lane() { return machine.current->index % kLanes; }

}  // namespace emulation

// 0: threads in rising order, 1: falling, else: at random from this seed.
extern "C" __attribute__((used, visibility("default"))) inline void emulation_order(int seed) {
  emulation::machine.order = seed;
}
extern "C" __attribute__((used, visibility("default"))) inline const char* emulation_error() {
  return emulation::machine.error.c_str();
}

inline const char* cudaGetErrorName(cudaError_t error) {
  return error ? "cudaErrorLaunchFailure" : "cudaSuccess";
}
inline const char* cudaGetErrorString(cudaError_t) { return emulation_error(); }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }

#define threadIdx (uint3{emulation::machine.current->index, 0, 0})
#define blockIdx (emulation::machine.block_index)
#define blockDim (emulation::machine.block_size)
#define gridDim (emulation::machine.grid_size)

inline void __syncthreads() { emulation::machine.wait(emulation::Wait::kBarrier); }
inline void __syncwarp(unsigned mask = ~0u) {
  emulation::meet(emulation::Meet::kSync, mask, 0, emulation::lane());
}
template <class T>
T __shfl_sync(unsigned mask, T v, int from) {
  return emulation::meet(emulation::Meet::kShuffle, mask, v, unsigned(from) % emulation::kLanes);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int far) {
  return __shfl_sync(mask, v, int(emulation::lane()) ^ far);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned far) {
  const unsigned lane = emulation::lane();
  return __shfl_sync(mask, v, int(lane >= far ? lane - far : lane));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t vote = predicate != 0;
  return unsigned(emulation::meet(emulation::Meet::kVote, mask, vote, 0)) & mask;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <class T>
T atomicAdd(T* at, T v) {
  const T old = *at;
  *at = T(old + v);
  return old;
}
template <class T>
T atomicMax(T* at, T v) {
  const T old = *at;
  *at = std::max(old, v);
  return old;
}

inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<uint64_t>(v)) : 64; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
using std::max;
using std::min;
