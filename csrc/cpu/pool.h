// A team of threads that runs one function together (SPMD): wakes once per forward pass, then meets
// at spinning barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace urial::cpu {

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Every thread runs body(thread); returns when all have. One caller at a time.
  void run(const std::function<void(int)>& body);

  // Inside run(): the threads share out 0..count-1, each index once, as f(begin, end), and meet
  // afterwards. Slices get smaller towards the end, so that all arrive together even where one core
  // is slow. Which thread takes which slice is left to chance: no result may depend on it.
  template <class Slice>
  void share(int count, Slice&& f) {
    share(count, f, [] {});
  }
  // One index at a time: f(i).
  template <class Index>
  void each(int count, Index&& f) {
    share(count, [&](int begin, int end) {
      for (int i = begin; i < end; ++i) f(i);
    });
  }
  // As share(); the last thread to arrive then runs `after`, before anybody goes on.
  template <class Slice, class After>
  void share(int count, Slice&& f, After&& after) {
    for (int begin = next_.load(std::memory_order_relaxed); begin < count;) {
      const int fair = (count - begin) / (2 * size_), end = begin + (fair > 1 ? fair : 1);
      if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      f(begin, end);
      begin = next_.load(std::memory_order_relaxed);
    }
    meet(after);
  }

 private:
  // Nobody goes on before everybody is here and the last of them has run `after`.
  template <class After>
  void meet(After&& after) {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) return wait(generation);
    after();
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
  }
  void wait(unsigned generation);
  void work(int thread);
  void stop();

  const int size_;
  std::atomic<int> next_{0};  // of share(); the last to arrive at meet() resets it
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<unsigned> job_{0};  // rises by one with each run()
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace urial::cpu
