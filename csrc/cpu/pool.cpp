#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace urial::cpu {
namespace {

// A short busy wait, then hand the core to whoever else wants it: on a shared machine a partner may
// not be running.
class Spin {
 public:
  void once() {
    if (++count_ % 128 == 0) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }

 private:
  unsigned count_ = 0;
};

// Polls of the job counter before a worker sleeps: about the time between two decoding steps.
constexpr int kIdlePolls = 20000;

}  // namespace

Team::Team(int threads) : size_(threads), next_(threads) {
  try {
    for (int t = 1; t < size_; ++t) threads_.emplace_back([this, t] { work(t); });
  } catch (...) {  // the system has no more threads: those that there are must end first
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
}

void Team::run(const std::function<void(int)>& body) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  body(0);
  meet();
}

void Team::work(int thread) {
  unsigned done = 0;
  for (;;) {
    Spin spin;
    for (int poll = 0; poll < kIdlePolls && job_.load(std::memory_order_acquire) == done; ++poll)
      spin.once();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return job_.load(std::memory_order_relaxed) != done; });
      if (stop_) return;
    }
    ++done;
    (*body_)(thread);
    meet();
  }
}

void Team::wait(unsigned generation) {
  Spin spin;
  while (generation_.load(std::memory_order_acquire) == generation) spin.once();
}

}  // namespace urial::cpu
