// Replies that are malformed: they are noticed, and what they were to bring is read again.
#include <gmock/gmock.h>

#include <cerrno>
#include <ostream>
#include <string>
#include <vector>

#include "extent/nbd_export.h"
#include "tests/nbd/fake_server.h"

namespace qchain::tests {
namespace {

constexpr std::uint32_t kRequest = 256 * kKiB;  // the default of NbdTarget
constexpr std::uint32_t kHalf = kRequest / 2;

// A reply that is wrong in itself, as the answer to the first request for kRequest bytes at 0. All
// later answers are right, so that the right bytes have to come out.
struct Malformation {
  const char* name;
  bool df;
  FakeServer::Handler send;
};

void PrintTo(const Malformation& malformation, std::ostream* out) { *out << malformation.name; }

const Bytes kJunk(kRequest, std::byte{0xAA});
Bytes junk(std::size_t length) { return slice(kJunk, 0, length); }

const std::vector<Malformation> kMalformations{
    {"ShortData", true, [](Wire& wire, const Request& r) { wire.data(r, 0, junk(kHalf), Last::Yes); }},
    {"NoData", true, [](Wire& wire, const Request& r) { wire.done(r); }},
    {"GapBetweenChunks", false,
     [](Wire& wire, const Request& r) {
       wire.data(r, 0, junk(512), Last::No);
       wire.data(r, 1024, junk(kRequest - 1024), Last::Yes);
     }},
    {"OverlapThatAddsUp", true,
     [](Wire& wire, const Request& r) {
       wire.data(r, 0, junk(kHalf), Last::No);
       wire.data(r, 0, junk(kHalf), Last::Yes);
     }},
    {"OverlapThatAddsUpWithoutDf", false,
     [](Wire& wire, const Request& r) {
       wire.data(r, kHalf - 512, junk(kHalf), Last::No);
       wire.data(r, 0, junk(kHalf), Last::Yes);
     }},
    {"HoleOverDataThatAddsUp", false,
     [](Wire& wire, const Request& r) {
       wire.data(r, 0, junk(kHalf), Last::No);
       wire.hole(r, 0, kHalf, Last::Yes);
     }},
    {"MoreThanAskedFor", true,
     [](Wire& wire, const Request& r) {
       wire.data(r, 0, junk(kRequest), Last::No);
       wire.data(r, 0, junk(512), Last::Yes);
     }},
    {"MorePiecesThanAreHeld", false,
     [](Wire& wire, const Request& r) {
       // They cover the request exactly, from the last one to the first.
       for (std::uint32_t at = kRequest; at > 0; at -= 32) wire.data(r, at - 32, junk(32), Last::No);
       wire.done(r);
     }},
    {"ChunkBeyondTheRequest", true,
     [](Wire& wire, const Request& r) { wire.data(r, 512, junk(kRequest), Last::Yes); }},
    {"ChunkFarAway", true,
     [](Wire& wire, const Request& r) { wire.data(r, ~std::uint64_t{0} - 100, junk(kRequest), Last::Yes); }},
    {"HoleInPlaceOfData", true, [](Wire& wire, const Request& r) { wire.hole(r, 0, kRequest, Last::Yes); }},
    {"HoleBeyondTheRequest", true,
     [](Wire& wire, const Request& r) { wire.hole(r, 0, 0xFFFFFFFF, Last::Yes); }},
    {"WrongCookie", true,
     [](Wire& wire, Request r) {
       r.cookie += 1000;
       wire.data(r, 0, junk(kRequest), Last::Yes);
     }},
    {"WrongMagic", true, [](Wire& wire, const Request&) { wire.send(Packet().u64(0).u64(0).u64(0)); }},
    {"SimpleReply", true,
     [](Wire& wire, const Request& r) {
       wire.send(Packet().u32(0x67446698).u32(0).u64(r.cookie).raw(kJunk));
     }},
    {"UnknownChunk", true,
     [](Wire& wire, const Request& r) { wire.chunk(r, 4711, Packet().u64(0), Last::Yes); }},
    {"ChunkTooSmallForItsOffset", true,
     [](Wire& wire, const Request& r) { wire.chunk(r, Wire::kChunkData, Packet().u32(0), Last::Yes); }},
    {"StatusChunk", true,
     [](Wire& wire, const Request& r) {
       wire.status(r, 1, {{kRequest, 2}}, Last::Yes);
     }},
    {"GiganticChunk", true,
     [](Wire& wire, const Request& r) {
       wire.send(Packet().u32(0x668e33ef).u16(1).u16(1).u64(r.cookie).u32(0xFFFFFFFF));
     }},
    {"ErrorAfterData", true,
     [](Wire& wire, const Request& r) {
       wire.data(r, 0, junk(kRequest), Last::No);
       wire.error(r, EIO, Last::Yes);
     }},
    {"ErrorBeforeData", true,
     [](Wire& wire, const Request& r) {
       wire.error(r, EIO, Last::No);
       wire.data(r, 0, junk(kRequest), Last::Yes);
     }},
    {"ErrorZero", true, [](Wire& wire, const Request& r) { wire.error(r, 0, Last::Yes); }},
    {"ErrorAtOffset", true,
     [](Wire& wire, const Request& r) {
       wire.chunk(r, Wire::kChunkErrorOffset, Packet().u32(EIO).u16(0).u64(512), Last::No);
       wire.data(r, 0, junk(512), Last::Yes);
     }},
    {"ErrorAtOffsetBeyond", true,
     [](Wire& wire, const Request& r) {
       wire.chunk(r, Wire::kChunkErrorOffset, Packet().u32(EIO).u16(0).u64(kMiB), Last::Yes);
     }},
    {"ErrorWithLyingMessageLength", true,
     [](Wire& wire, const Request& r) {
       wire.chunk(r, Wire::kChunkError, Packet().u32(EIO).u16(0xFFFF), Last::Yes);
     }},
    {"DroppedInMidReply", true,
     [](Wire& wire, const Request& r) {
       // The beginning of a chunk that is right so far.
       wire.send(
           Packet().u32(0x668e33ef).u16(1).u16(1).u64(r.cookie).u32(kRequest + 8).u64(0).raw(junk(1000)));
       wire.hang_up();
     }},
};

class NbdMalformed : public ::testing::TestWithParam<Malformation> {};

TEST_P(NbdMalformed, IsReadAgain) {
  FakeServer server(disk_bytes(kMiB));
  server.offer.df = GetParam().df;
  server.on_read = server.once(GetParam().send);
  NbdExport live(target_of(server.uri()), {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, kRequest), slice(server.disk(), 0, kRequest));
  EXPECT_EQ(read(*reader, kRequest, kHalf), slice(server.disk(), kRequest, kHalf));
  EXPECT_NO_THROW(live.confirm());
}

INSTANTIATE_TEST_SUITE_P(Reply, NbdMalformed, ::testing::ValuesIn(kMalformations),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace qchain::tests
