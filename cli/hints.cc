#include "cli/hints.h"

namespace qchain {

namespace {

const char* hint_for(Remedy remedy) {
  switch (remedy) {
    case Remedy::None:
      return "";
    case Remedy::ReplaceOutput:
      return "; to replace it, add --force";
    case Remedy::ForceShare:
      return "; to read it all the same, add --force-share";
    case Remedy::NameBitmap:
      return "; choose with --bitmap NAME";
    case Remedy::NameParentPoint:
      return "; if so, say it with --since CHECKPOINT";
    case Remedy::LargerClusters:
      return " (--cluster-size SIZE)";
    case Remedy::ParentIsRaw:
      return "; if it is a raw image, add --parent-format raw";
    case Remedy::SourceIsRaw:
      return "; if it is a raw image, add --format raw";
    case Remedy::AllowDataFile:
      return "; to follow its name, add --allow-data-file";
    case Remedy::AllowBackingRoot:
      return " with --backing-root DIR";
    case Remedy::AllowOtherExport:
      return " If it is the same one, add --allow-other-export";
    case Remedy::AllowWritable:
      return " (--require-read-only)";
    case Remedy::GiveTlsCredentials:
      return " (--tls-psk-file FILE, --tls-certificates DIR)";
    case Remedy::Seal:
      return "; qchain verify --seal finds it out";
    case Remedy::SealAgain:
      return "; --seal makes it provable block by block again";
    case Remedy::AcceptChanged:
      return "; if another tool has changed the disk on purpose (qemu-img commit, a resize), add "
             "--accept-changed to seal what is there on your word; if not, the layer is damaged";
    case Remedy::Salvage:
      return "; --salvage restores what is there all the same";
    case Remedy::NameSigningKey:
      return " with --sign-key FILE";
  }
  return "";
}

}  // namespace

std::string with_hint(const std::string& message, Remedy remedy) { return message + hint_for(remedy); }

}  // namespace qchain
