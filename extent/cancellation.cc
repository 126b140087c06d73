#include "extent/cancellation.h"

namespace qchain {

namespace {
thread_local const Cancellation* current_cancellation = nullptr;
}  // namespace

void Cancellation::request(Outcome reason) noexcept {
  Outcome expected = Outcome::Done;
  reason_.compare_exchange_strong(expected, reason);
}

void Cancellation::throw_if_requested() const {
  const Outcome reason = reason_;
  if (reason != Outcome::Done) throw Error(reason, to_string(reason));
}

CancellationScope::CancellationScope(const Cancellation* cancellation) noexcept
    : outer_(current_cancellation) {
  current_cancellation = cancellation;
}

CancellationScope::~CancellationScope() { current_cancellation = outer_; }

const Cancellation* CancellationScope::current() noexcept { return current_cancellation; }

void throw_if_cancelled() {
  if (current_cancellation != nullptr) current_cancellation->throw_if_requested();
}

}  // namespace qchain
