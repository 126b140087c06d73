// Cooperative cancellation: the caller owns a Cancellation, and every loop that can take long checks the one
// that is current in its thread.
#pragma once

#include <atomic>

#include "extent/error.h"
#include "extent/export.h"

namespace qchain {

/// A request to stop. It has to outlive the work.
class QCHAIN_API Cancellation {
 public:
  /// The work ends with Error (`reason`: Interrupted or Terminated) within a second. Thread-safe and
  /// async-signal-safe; the first reason wins.
  void request(Outcome reason) noexcept;
  /// Throws Error once it has been requested.
  void throw_if_requested() const;

 private:
  std::atomic<Outcome> reason_{Outcome::Done};
  static_assert(std::atomic<Outcome>::is_always_lock_free);
};

/// Makes `cancellation` (nullptr: none) the current one of this thread, and of the workers that it starts,
/// for as long as it lives. Scopes nest.
class CancellationScope {
 public:
  explicit CancellationScope(const Cancellation* cancellation) noexcept;
  ~CancellationScope();
  CancellationScope(const CancellationScope&) = delete;
  CancellationScope& operator=(const CancellationScope&) = delete;

  /// The current one of this thread; nullptr: none.
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
