// Page-aligned memory, as direct I/O requires it.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <vector>

namespace qchain {

/// The unit of direct I/O in bytes: no device in use has larger sectors.
inline constexpr std::size_t kPage = 4096;

/// The size of a huge page on common processors, in bytes. On others it is only an alignment.
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Requests huge pages for large buffers: a huge page is one segment for the device, small pages are
/// hundreds. Without huge pages I/O is only slower.
template <class T>
struct PageAllocator {
  using value_type = T;

  PageAllocator() = default;
  template <class U>
  explicit PageAllocator(const PageAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* const memory = ::operator new(bytes, alignment_for(bytes));
    if (bytes >= kHugePage) madvise(memory, bytes - bytes % kHugePage, MADV_HUGEPAGE);
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) noexcept {
    ::operator delete(memory, alignment_for(count * sizeof(T)));
  }
  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }

 private:
  static constexpr std::align_val_t alignment_for(std::size_t bytes) {
    return std::align_val_t{bytes >= kHugePage ? kHugePage : kPage};
  }
};

using PageBuffer = std::vector<std::byte, PageAllocator<std::byte>>;

/// Memory for bytes that are read before they are looked at: undefined until then.
class ReadBuffer {
 public:
  explicit ReadBuffer(std::size_t size) : bytes_(PageAllocator<std::byte>().allocate(size), Free{size}) {}
  std::span<std::byte> span() const noexcept { return {bytes_.get(), bytes_.get_deleter().size}; }

 private:
  struct Free {
    std::size_t size;
    void operator()(std::byte* bytes) const noexcept { PageAllocator<std::byte>().deallocate(bytes, size); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
};

}  // namespace qchain
