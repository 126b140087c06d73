#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "qcow2/header.h"

namespace qchain {

/// Decodes the stream of one compressed cluster: fills `cluster`, never more. `stream` may be followed
/// by other bytes. Returns what is wrong with it; empty where nothing is. For deflate: a raw stream with
/// a window of up to 32 KiB. For zstd: one frame or several, the last one finished.
std::string decompress(Compression type, std::span<const std::byte> stream,
                       std::span<std::byte> cluster);

}  // namespace qchain
