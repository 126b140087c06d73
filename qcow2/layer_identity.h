#pragma once

#include <cstdint>
#include <string>

namespace qchain {

/// Identifies a layer and its parent: the JSON in our header extension, at most 1 KiB. An empty string is an
/// unknown field.
struct Identity {
  /// Whether the layer was written with a parent as its backing file. A full layer has none.
  bool overlay = false;
  std::string id;             ///< UUID of this layer.
  std::string parent_id;      ///< UUID of the parent; empty: a full layer, or a parent without identity.
  std::string checkpoint;     ///< The point in time of this layer.
  std::string since;          ///< The checkpoint that its changes count from.
  std::string digest;         ///< Of the whole disk at this point, "sha256:HEX".
  std::string parent_digest;  ///< The parent's digest.
  std::uint64_t length = 0;   ///< True length of the disk in bytes, before rounding up to 512.
  std::string time;           ///< ISO 8601, UTC.
  std::string tool;           ///< "qchain 0.1.0".
  // Where it was pulled from, as far as that is known.
  std::string export_name;  ///< NBD export name.
  std::string domain;       ///< UUID of the libvirt domain.
  std::string target;       ///< Its disk, "vda".
  std::string source;       ///< "read-only export", "writable export".
  std::string checked;      ///< How much of the clean ranges was compared with the parent, with the seed.
  std::string point;        ///< What confirmed that the job was still running at the end.

  friend bool operator==(const Identity&, const Identity&) = default;
};

}  // namespace qchain
