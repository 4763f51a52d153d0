// Large zeroed memory straight from the system: pages come when touched, huge where the system
// grants them.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace urial::cpu {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
#ifdef __SANITIZE_ADDRESS__
    void* p = std::calloc(bytes, 1);  // whose ends it watches, as it does not those of pages
    if (!p) throw std::bad_alloc();
#else
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
#endif
    data_ = static_cast<char*>(p);
  }
  ~Memory() { free(); }
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr, other.bytes_ = 0;
  }
  Memory& operator=(Memory&& other) noexcept {
    if (this != &other) {
      free();
      data_ = other.data_, bytes_ = other.bytes_;
      other.data_ = nullptr, other.bytes_ = 0;
    }
    return *this;
  }

  // Keeps what it has where that is enough; else everything in it is lost.
  char* at_least(size_t bytes) {
    if (bytes_ < bytes) *this = Memory(bytes);
    return data_;
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void free() {
#ifdef __SANITIZE_ADDRESS__
    std::free(data_);
#else
    if (data_) munmap(data_, bytes_);
#endif
  }
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace urial::cpu
