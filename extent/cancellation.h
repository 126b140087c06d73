// How the wish to stop reaches the work: whoever waits for it keeps a Cancellation, and every loop that can
// take long asks the one of its thread.
#pragma once

#include <atomic>

#include "extent/error.h"
#include "extent/export.h"

namespace qchain {

/// A wish to stop. It has to outlive the work.
class QCHAIN_API Cancellation {
 public:
  /// The work ends with Error (`reason`: Interrupted or Terminated) within a second. Safe in a signal handler
  /// and from any thread; the first reason stays.
  void request(Outcome reason) noexcept;
  /// Throws Error once it has been requested.
  void throw_if_requested() const;

 private:
  std::atomic<Outcome> reason_{Outcome::Done};
  static_assert(std::atomic<Outcome>::is_always_lock_free);
};

/// While it lives, what this thread does, and the workers that it starts, is cancelled by `cancellation`;
/// nullptr: by nothing. The last one that was made counts.
class CancellationScope {
 public:
  explicit CancellationScope(const Cancellation* cancellation) noexcept;
  ~CancellationScope();
  CancellationScope(const CancellationScope&) = delete;
  CancellationScope& operator=(const CancellationScope&) = delete;

  /// Of this thread; nullptr: none.
  static const Cancellation* current() noexcept;

 private:
  const Cancellation* outer_;
};

/// Throws Error (Interrupted or Terminated) once the cancellation of this thread has been requested.
void throw_if_cancelled();

/// Whether this is such an Error.
inline bool is_cancelled(const Error& error) noexcept {
  return error.outcome() == Outcome::Interrupted || error.outcome() == Outcome::Terminated;
}

}  // namespace qchain
