#include "cli/hints.h"

#include <array>
#include <cstddef>

namespace qchain {

namespace {

const char* hint_for(Remedy remedy) {
  switch (remedy) {
    case Remedy::None:
      return "";
    case Remedy::ReplaceOutput:
      return "; use --force to replace it";
    case Remedy::ForceShare:
      return "; use --force-share to read it anyway";
    case Remedy::NameBitmap:
      return "; select one with --bitmap NAME";
    case Remedy::NameParentPoint:
      return " with --since CHECKPOINT";
    case Remedy::LargerClusters:
      return " (--cluster-size SIZE)";
    case Remedy::ParentIsRaw:
      return "; for a raw image, use --parent-format raw";
    case Remedy::SourceIsRaw:
      return "; for a raw image, use --format raw";
    case Remedy::AllowDataFile:
      return "; use --allow-data-file to open it";
    case Remedy::AllowBackingRoot:
      return " with --backing-root DIR";
    case Remedy::AllowOtherExport:
      return "; if it is the same one, use --allow-other-export";
    case Remedy::AllowWritable:
      return " (--require-read-only)";
    case Remedy::GiveTlsCredentials:
      return " (--tls-psk-file FILE, --tls-certificates DIR)";
    case Remedy::Seal:
      return "; run 'qchain verify --seal' to compute it";
    case Remedy::SealAgain:
      return "; run 'qchain verify --seal' to make it verifiable block by block again";
    case Remedy::VerifyAndSeal:
      return "; run 'qchain verify' to see whether the content is unchanged, and if it is, 'qchain verify "
             "--seal'";
    case Remedy::AcceptChanged:
      return "; if another tool has changed the disk on purpose (qemu-img commit, a resize), use "
             "--accept-changed to seal the current content; if not, the layer is damaged";
    case Remedy::Salvage:
      return "; run 'qchain verify' to see what is damaged, or use --salvage to restore what can be read";
    case Remedy::NameSigningKey:
      return " with --sign-key FILE";
    case Remedy::TrustKey:
      return "; to leave it as it is, use --trust-key FILE";
    case Remedy::TrustOrSignUnproven:
      return "; use --trust-key FILE for the keys that signed the layers below, or --sign-unproven to sign "
             "all "
             "the same, which the manifest records";
  }
  return "";
}

// tests/e2e/remedies_test.py carries out each of these.
constexpr const char* kAnotherCopy =
    "replace this layer with another copy of the file; if there is none, qemu-img convert --salvage -O "
    "qcow2 IMAGE COPY writes what can still be read, with zeros for the rest";
constexpr const char* kRepair = "do not write to the image before qemu-img check -r all has repaired it";

constexpr std::array<const char*, kFlaws> kRemedies{
    // marked-corrupt
    "qemu-img check -r all clears the mark if it finds nothing else",
    // bad-extension
    "replace this layer with another copy of the file; if only bitmaps are affected, qchain restore IMAGE "
    "COPY --format qcow2 writes an image without them that QEMU can open: make a full backup next",
    // reserved-bits
    "replace this layer with another copy of the file; if there is none, qemu-img convert -O qcow2 IMAGE "
    "COPY writes a sound image: QEMU ignores these bits",
    kAnotherCopy,  // misaligned
    kAnotherCopy,  // past-end
    // truncated
    "replace this layer with another copy of the file; if there is none, qemu-img convert --salvage -O "
    "qcow2 IMAGE COPY writes what can still be read, with zeros for the rest; if only refcounts are lost, "
    "qemu-img check -r all rebuilds them",
    kAnotherCopy,  // bad-entry
    kAnotherCopy,  // bad-stream
    // overlap
    "it is unknown which data is right: replace this layer with another copy of the file; if there is "
    "none, qchain restore IMAGE COPY --format qcow2 writes an image of what can be read",
    kRepair,                                    // refcount-low
    "qemu-img check -r leaks frees the space",  // refcount-high
    // refcount-stale
    "QEMU rebuilds the refcounts when it opens the image for writing, as does qemu-img check -r all",
    // refcount-past-end
    "extend the file over these clusters (truncate --size=END IMAGE), then run qemu-img check -r leaks, "
    "which does not look past the end of the file",
    kRepair,  // bad-refcount-block
    // copied-set
    "do not write to the image: qemu-img check -r all repairs it, except for compressed clusters; for "
    "those, qchain restore IMAGE COPY --format qcow2 writes a sound image",
    kRepair,  // copied-missing
    // bad-snapshot
    "qemu-img check -r all repairs what it can; for the rest, qchain restore IMAGE COPY --format qcow2 "
    "writes an image without snapshots",
    // bad-bitmap
    "QEMU may refuse to open the image: qchain restore IMAGE COPY --format qcow2 writes one without "
    "bitmaps; make a full backup next",
};

}  // namespace

std::string with_hint(const std::string& message, Remedy remedy) { return message + hint_for(remedy); }

const char* remedy_for(Flaw flaw) noexcept { return kRemedies[static_cast<std::size_t>(flaw)]; }

}  // namespace qchain
