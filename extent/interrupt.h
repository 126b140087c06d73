// How SIGINT, SIGTERM and SIGHUP reach the work: a signal handler notes the signal here, and every loop that
// can take long asks. Process-wide, because signals are.
#pragma once

namespace qchain {

/// Notes that the process is to stop. Safe in a signal handler.
void request_interrupt(int signal_number) noexcept;

/// Throws Error (Interrupted or Terminated) once an interrupt has been requested.
void throw_if_interrupted();

}  // namespace qchain
