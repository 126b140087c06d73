// Memory that begins at a page, as I/O past the page cache wants it.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace qchain {

/// The unit of I/O past the page cache, in bytes: no device in use has larger sectors.
inline constexpr std::size_t kPage = 4096;

template <class T>
struct PageAllocator {
  using value_type = T;

  PageAllocator() = default;
  template <class U>
  explicit PageAllocator(const PageAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new (count * sizeof(T), std::align_val_t{kPage}));
  }
  void deallocate(T* memory, std::size_t) noexcept { ::operator delete (memory, std::align_val_t{kPage}); }
  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
};

using PageBuffer = std::vector<std::byte, PageAllocator<std::byte>>;

}  // namespace qchain
