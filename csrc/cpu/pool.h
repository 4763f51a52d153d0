// A team of threads that runs one function together (SPMD): wakes once per forward pass, then meets
// at spinning barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
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
  // afterwards. Each thread has a range of its own, the same in every call of this count, so that
  // what it made in one call is near it in the next; whoever is done helps the others. Slices get
  // smaller towards the end of a range, so that all arrive together even where one core is slow.
  // Who takes a slice is left to chance: no result may depend on it.
  template <class Slice>
  void share(int thread, int count, Slice&& f) {
    share(thread, count, f, [] {});
  }
  // One index at a time: f(i).
  template <class Index>
  void each(int thread, int count, Index&& f) {
    share(thread, count, [&](int begin, int end) {
      for (int i = begin; i < end; ++i) f(i);
    });
  }
  // One index at a time, in order, to whoever comes: for pieces of very different sizes. Meets
  // afterwards.
  template <class Index>
  void queue(int count, Index&& f) {
    for (int i; (i = next_[0].value.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
    meet();
  }
  // As share(); the last thread to arrive then runs `after`, before anybody goes on.
  template <class Slice, class After>
  void share(int thread, int count, Slice&& f, After&& after) {
    for (int i = 0; i < size_; ++i) {
      const Range range = range_of((thread + i) % size_, count);
      std::atomic<int>& next = next_[(thread + i) % size_].value;
      const int n = range.end - range.begin;
      for (int begin = next.load(std::memory_order_relaxed); begin < n;) {
        const int end = begin + (n - begin + 1) / 2;
        if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        f(range.begin + begin, range.begin + end);
        begin = next.load(std::memory_order_relaxed);
      }
    }
    meet(after);
  }
  struct Range {
    int begin, end;
  };
  // A thread's own part of 0..count-1.
  Range range_of(int thread, int count) const {
    return {int(int64_t(count) * thread / size_), int(int64_t(count) * (thread + 1) / size_)};
  }
  // Nobody goes on before everybody is here.
  void meet() {
    meet([] {});
  }

 private:
  // Nobody goes on before everybody is here and the last of them has run `after`.
  template <class After>
  void meet(After&& after) {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) return wait(generation);
    after();
    arrived_.store(0, std::memory_order_relaxed);
    for (int t = 0; t < size_; ++t) next_[t].value.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
  }
  void wait(unsigned generation);
  void work(int thread);
  void stop();

  const int size_;
  // How much of its range is taken, or of a queue; the last to arrive at meet() resets it. In a
  // cache line of its own.
  struct alignas(64) Next {
    std::atomic<int> value{0};
  };
  std::vector<Next> next_;
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
