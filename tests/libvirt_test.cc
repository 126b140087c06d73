// Parsing of libvirt's XML, QEMU's replies and NBD URIs, and calls that take too long.
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>

#include "cli/libvirt/backup_xml.h"
#include "cli/libvirt/block_job.h"
#include "cli/libvirt/nbd_address.h"
#include "cli/libvirt/timed_call.h"
#include "extent/error.h"
#include "extent/cancellation.h"

namespace qchain::tests {
namespace {

using std::chrono::seconds;
using Transport = NbdAddress::Transport;

template <class Call>
Outcome outcome_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.outcome();
  }
  return Outcome::Done;
}

TEST(BackupXmlTest, APullJob) {
  const BackupXml job = parse_backup_xml(R"(
    <domainbackup mode='pull'>
      <incremental>monday</incremental>
      <server transport='unix' socket='/run/a &amp; b.sock'/>
      <disks>
        <disk name='vda' backup='yes' backupmode='incremental' incremental='monday' exportname='root' exportbitmap='dirty' index='6'/>
        <disk name='vdb' backup='yes' backupmode='full' index='7'/>
        <disk name='vdc' backup='yes' backupmode='incremental' incremental='monday'/>
        <disk name='sda' backup='no'/>
      </disks>
    </domainbackup>)");
  EXPECT_TRUE(job.pull);
  EXPECT_EQ(job.server.transport, "unix");
  EXPECT_EQ(job.server.socket, "/run/a & b.sock");
  ASSERT_EQ(job.disks.size(), 3U);
  EXPECT_EQ(job.disks[0].target, "vda");
  EXPECT_EQ(job.disks[0].export_name, "root");
  EXPECT_EQ(job.disks[0].export_bitmap, "dirty");
  EXPECT_EQ(job.disks[1].export_name, "vdb");
  EXPECT_EQ(job.disks[1].export_bitmap, "");
  EXPECT_EQ(job.disks[2].export_bitmap, "backup-vdc");
}

TEST(BackupXmlTest, ServersOfTcpAndPushJobs) {
  const BackupXml tcp =
      parse_backup_xml("<domainbackup mode='pull'><server name='localhost' port='10809'/></domainbackup>");
  EXPECT_EQ(tcp.server.transport, "tcp");
  EXPECT_EQ(tcp.server.host, "localhost");
  EXPECT_EQ(tcp.server.port, 10809U);
  EXPECT_FALSE(parse_backup_xml("<domainbackup mode='push'/>").pull);
  EXPECT_FALSE(parse_backup_xml("<domainbackup/>").pull);
}

TEST(BackupXmlTest, SomethingElse) {
  for (const std::string text : {"", "<domain/>", "<domainbackup", "backup"}) {
    EXPECT_EQ(outcome_of([&] { parse_backup_xml(text); }), Outcome::Io) << text;
  }
}

TEST(BlockJobTest, TheJobOfADisk) {
  const std::vector<BlockJob> jobs = parse_jobs(R"({"id": "libvirt-1", "return": [
    {"id": "backup-vdb-libvirt-1-format", "type": "backup", "status": "concluded", "current-progress": 0},
    {"id": "backup-vda-libvirt-2-format", "type": "backup", "status": "running", "current-progress": 0},
    {"id": "backup-vdc-libvirt-3-format", "type": "mirror", "status": "running", "current-progress": 0}]})");
  ASSERT_TRUE(backup_job_of(jobs, "vda"));
  EXPECT_EQ(backup_job_of(jobs, "vda")->id, "backup-vda-libvirt-2-format");
  EXPECT_TRUE(backup_job_of(jobs, "vda")->is_alive());
  EXPECT_FALSE(backup_job_of(jobs, "vdb")->is_alive());
  EXPECT_FALSE(backup_job_of(jobs, "vdc"));
  EXPECT_FALSE(backup_job_of(jobs, "vd"));
  EXPECT_FALSE(backup_job_of(parse_jobs(R"({"return": []})"), "vda"));
}

TEST(BlockJobTest, AliveIsRunningOrPaused) {
  for (const std::string status : {"undefined", "created", "ready", "standby", "waiting", "pending",
                                   "aborting", "concluded", "null", ""}) {
    EXPECT_FALSE((BlockJob{"id", "backup", status}).is_alive()) << status;
  }
  EXPECT_TRUE((BlockJob{"id", "backup", "paused"}).is_alive());
}

TEST(BlockJobTest, MalformedReplies) {
  for (const std::string text :
       {"", "{}", "[]", "{\"error\": {\"desc\": \"no\"}}", "{\"return\": 1}", "{\"return\": [{}]}",
        "{\"return\": [{\"id\": 1, \"type\": \"backup\", \"status\": \"running\"}]}"}) {
    EXPECT_EQ(outcome_of([&] { parse_jobs(text); }), Outcome::Io) << text;
  }
  const std::vector<BlockJob> two{{"backup-vda-a", "backup", "running"},
                                  {"backup-vda-b", "backup", "concluded"}};
  EXPECT_EQ(outcome_of([&] { backup_job_of(two, "vda"); }), Outcome::Io);
}

TEST(NbdAddressTest, PartsOfUris) {
  const NbdAddress socket = nbd_address("nbd+unix:///v%64a%2Fb?tls-psk-file=/k&socket=/run/a%20b.sock");
  EXPECT_EQ(socket.transport, Transport::Unix);
  EXPECT_EQ(socket.export_name, "vda/b");
  EXPECT_EQ(socket.socket, "/run/a b.sock");
  const NbdAddress plain = nbd_address("nbd://host/vda");
  EXPECT_EQ(plain.transport, Transport::Tcp);
  EXPECT_EQ(plain.host, "host");
  EXPECT_EQ(plain.port, 10809U);
  EXPECT_EQ(plain.export_name, "vda");
  const NbdAddress full = nbd_address("nbds://user@[::1]:1234/?tls-certificates=/pki");
  EXPECT_EQ(full.host, "::1");
  EXPECT_EQ(full.port, 1234U);
  EXPECT_EQ(full.export_name, "");
  EXPECT_EQ(nbd_address("nbd+vsock://2/vda").transport, Transport::Other);
  for (const std::string odd :
       {"", ":", "nbd:", "nbd://", "nbd+unix:", "nbd+unix:///%?socket", "nbd://h:x/%4", "%"}) {
    nbd_address(odd);
  }
}

TEST(NbdAddressTest, ServersThatCannotBeMeant) {
  const BackupServer unix_socket{"unix", "", 0, "/nowhere/nbd.sock"};
  const NbdAddress same = nbd_address("nbd+unix:///vda?socket=/nowhere/nbd.sock");
  const NbdAddress other = nbd_address("nbd+unix:///vda?socket=/elsewhere/nbd.sock");
  EXPECT_EQ(mismatch(same, unix_socket, true), "");
  EXPECT_NE(mismatch(other, unix_socket, true).find("/nowhere/nbd.sock"), std::string::npos);
  EXPECT_NE(mismatch(nbd_address("nbd://localhost/vda"), unix_socket, true), "");
  EXPECT_EQ(mismatch(other, unix_socket, false), "") << "may be forwarded";

  const BackupServer tcp{"tcp", "0.0.0.0", 10809, ""};
  EXPECT_EQ(mismatch(nbd_address("nbd://host/vda"), tcp, false), "");
  EXPECT_NE(mismatch(nbd_address("nbd://host:10810/vda"), tcp, false), "");
  EXPECT_NE(mismatch(nbd_address("nbd://localhost:10810/vda"), tcp, true), "");
  EXPECT_EQ(mismatch(nbd_address("nbd://localhost:10810/vda"), tcp, false), "") << "may be forwarded";
  EXPECT_NE(mismatch(same, tcp, true), "");
}

TEST(NbdAddressTest, OneSocketUnderTwoNames) {
  const BackupServer server{"unix", "", 0, "/proc/self/../self/exe"};
  EXPECT_EQ(mismatch(nbd_address("nbd+unix:///vda?socket=/proc/self/exe"), server, true), "");
}

class TimedCallTest : public ::testing::Test {
 protected:
  void TearDown() override { go_on_->set_value(); }

  // A call that lasts for as long as the test.
  auto endless() {
    return [gate = go_on_->get_future().share()] {
      gate.wait();
      return 1;
    };
  }

 private:
  std::shared_ptr<std::promise<void>> go_on_ = std::make_shared<std::promise<void>>();
};

TEST_F(TimedCallTest, ReturnsAndThrowsWhatTheCallDoes) {
  EXPECT_EQ(timed_call([] { return 7; }, seconds(60), "call"), 7);
  EXPECT_EQ(
      outcome_of([] { timed_call([]() { throw Error(Outcome::Mismatch, "no"); }, seconds(60), "call"); }),
      Outcome::Mismatch);
}

TEST_F(TimedCallTest, GivesUpAfterTheTimeOut) {
  EXPECT_EQ(outcome_of([&] { timed_call(endless(), seconds(0), "call"); }), Outcome::Inconclusive);
}

TEST_F(TimedCallTest, ACancellationEndsTheWaiting) {
  Cancellation cancellation;
  const CancellationScope scope(&cancellation);
  cancellation.request(Outcome::Terminated);
  EXPECT_EQ(outcome_of([&] { timed_call(endless(), seconds(3600), "call"); }), Outcome::Terminated);
}

}  // namespace
}  // namespace qchain::tests
