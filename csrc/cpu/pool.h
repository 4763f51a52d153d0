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

  // Inside run(): the threads share out 0..count-1 in slices, each index once, and meet afterwards.
  // Which thread takes which slice is left to chance: no result may depend on it.
  template <class Slice>
  void share(int count, int slice, Slice&& f) {
    for (;;) {
      const int begin = next_.fetch_add(slice, std::memory_order_relaxed);
      if (begin >= count) break;
      f(begin, begin + slice < count ? begin + slice : count);
    }
    meet();
  }

  // Inside run(): nobody goes on before everybody is here.
  void meet();

 private:
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
