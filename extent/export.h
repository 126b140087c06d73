#pragma once

/// Marks what the shared library exports. Everything else is hidden.
#define QCHAIN_API __attribute__((visibility("default")))
