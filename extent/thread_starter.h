// How a thread is started; tests replace it to make it fail.
#pragma once

#include <functional>
#include <thread>
#include <utility>

namespace qchain {

/// Throws std::system_error or std::bad_alloc if no thread can be started.
using ThreadStarter = std::jthread (*)(std::function<void()>);

inline std::jthread start_thread(std::function<void()> run) { return std::jthread(std::move(run)); }

}  // namespace qchain
