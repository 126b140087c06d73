#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace qchain {

/// Who a layer is and what it belongs on: the JSON in our header extension, at most 1 KiB. An empty
/// string is a field that is not known.
struct Identity {
  /// Whether the layer was written on a parent. A full layer stands alone.
  bool overlay = false;
  std::string id;          ///< UUID of this layer.
  std::string parent_id;   ///< Of the layer that it was written on; empty: a full layer, or a parent without.
  std::string checkpoint;  ///< The point in time that this layer is.
  std::string since;       ///< The checkpoint that its changes count from.
  std::string digest;      ///< Of the whole disk at this point, "sha256:HEX".
  std::string parent_digest;  ///< Of the parent's.
  std::uint64_t length = 0;   ///< True length of the disk in bytes, before rounding up to 512.
  std::string time;           ///< ISO 8601, UTC.
  std::string tool;           ///< "qchain 0.1.0".
  // Of where it was pulled from, as far as that is known.
  std::string export_name;  ///< NBD export name.
  std::string domain;       ///< UUID of the libvirt domain.
  std::string target;       ///< Its disk, "vda".
  std::string source;       ///< "read-only export", "writable export".
  std::string checked;      ///< What of the clean ranges was compared with the parent, with the seed.
  std::string point;        ///< Who confirmed that the job was still running at the end.

  friend bool operator==(const Identity&, const Identity&) = default;
};

/// Throws Error (Usage) where the JSON would exceed 1 KiB.
std::string encode_identity(const Identity& identity);
/// Throws Error (Mismatch), naming `path`, where `json` is not what encode_identity() writes.
Identity decode_identity(const std::string& json, const std::string& path);

/// When the layer was written, in seconds since 1970; nullopt where that is not recorded. The image's
/// modification time is set to it: another one tells that somebody wrote to the image since, or copied it.
std::optional<std::int64_t> time_of(const Identity& identity);

/// A new random UUID (version 4). Throws Error (Io) without a source of randomness.
std::string random_uuid();
/// Whether `text` is a UUID in its usual form.
bool is_uuid(const std::string& text);

/// Why a layer that records `child` does not match its backing file: a layer that records `parent`
/// (nullopt: without an identity), or on nothing at all. Empty where it fits, or where nothing is
/// recorded that could tell.
std::string misfit(const Identity& child, bool has_backing, const std::optional<Identity>& parent);

}  // namespace qchain
