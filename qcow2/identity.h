#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "qcow2/layer_identity.h"

namespace qchain {

/// Throws Error (Usage) if the JSON would exceed 1 KiB.
std::string encode_identity(const Identity& identity);
/// Throws Error (Mismatch), naming `path`, if `json` is not what encode_identity() writes.
Identity decode_identity(const std::string& json, const std::string& path);

/// Seconds since 1970 of a time as "2026-11-24T18:29:17Z"; nullopt: it is not one.
std::optional<std::int64_t> parse_time(const std::string& text);

/// When the layer was written, in seconds since 1970; nullopt if that is not recorded. The image's
/// modification time is set to it: a different one means that the image was written to since, or copied.
std::optional<std::int64_t> time_of(const Identity& identity);

/// A new random UUID (version 4). Throws Error (Io) if getrandom() fails.
std::string random_uuid();
/// Whether `text` is a UUID in its usual form.
bool is_uuid(const std::string& text);

/// Why a layer with identity `child` does not match its backing file, which has identity `parent` (nullopt:
/// none). Empty if it matches, or if too little is recorded to decide.
std::string link_mismatch(const Identity& child, bool has_backing, const std::optional<Identity>& parent);

}  // namespace qchain
