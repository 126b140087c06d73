// TLS: servers that are accepted or refused. The servers are nbdkit; openssl makes the certificates.
#include <gmock/gmock.h>

#include <filesystem>

#include "extent/nbd_export.h"
#include "tests/nbd/disk.h"
#include "tests/nbd/server_process.h"

namespace qchain::tests {
namespace {

class NbdTls : public ::testing::Test {
 protected:
  NbdTls() { write_file(folder / "disk", content); }

  Words nbdkit(const Words& options) const {
    Words words{"nbdkit", "--foreground", "--readonly", "--exit-with-parent"};
    words.insert(words.end(), options.begin(), options.end());
    words.insert(words.end(), {"file", folder / "disk"});
    return words;
  }
  void serve_on_unix(const Words& options) {
    server.emplace(ServerProcess::on_unix(folder / "s", nbdkit(options)));
  }
  void serve_on_tcp(const Words& options) { server.emplace(ServerProcess::on_tcp(nbdkit(options))); }

  static void expect_refused(const NbdTarget& target, Outcome outcome, const std::string& words) {
    EXPECT_THAT([&] { NbdExport(target, {}); }, Fails(outcome, words));
  }
  void expect_content(const NbdTarget& target) const {
    NbdExport live(target, {});
    EXPECT_EQ(read_all(live), content);
    EXPECT_NO_THROW(live.confirm());
  }

  Folder folder;
  const Bytes content = disk_bytes(4 * kMiB + 1);
  std::optional<ServerProcess> server;
};

// Pre-shared keys.
class NbdTlsPsk : public NbdTls {
 protected:
  NbdTlsPsk() {
    write_text(folder / "right.psk", std::string("alice:0123456789abcdef0123456789abcdef\n"));
    write_text(folder / "wrong.psk", std::string("alice:ffffffffffffffffffffffffffffffff\n"));
    write_text(folder / "other.psk", std::string("bob:0123456789abcdef0123456789abcdef\n"));
    serve_on_unix({"--tls=require", "--tls-psk=" + folder / "right.psk"});
  }
  NbdTarget secure(const char* key) const {
    NbdTarget target = target_of("nbds+unix://alice@/?socket=" + folder / "s");
    if (key != nullptr) target.tls_psk_file = folder / key;
    return target;
  }
};

TEST_F(NbdTlsPsk, ReadsWithTheRightKey) { expect_content(secure("right.psk")); }

TEST_F(NbdTlsPsk, RefusesAWrongKey) { expect_refused(secure("wrong.psk"), Outcome::Io, "cannot connect"); }

TEST_F(NbdTlsPsk, RefusesAKeyOfAnotherUser) { expect_refused(secure("other.psk"), Outcome::Io, "alice"); }

TEST_F(NbdTlsPsk, RefusesAKeyFileThatIsNotThere) {
  expect_refused(secure("no-such-file"), Outcome::Io, "no-such-file");
}

TEST_F(NbdTlsPsk, WantsAKeyOrCertificates) {
  expect_refused(secure(nullptr), Outcome::Usage, "TLS needs a pre-shared key or certificates");
}

TEST_F(NbdTlsPsk, DoesNotDropToPlainText) {
  // Neither where the server wants TLS and the client does not, nor the other way round.
  expect_refused(target_of(unix_uri(folder / "s")), Outcome::Io,
                 "the server requires TLS; use an nbds:// or nbds+unix:// URI");
  const Changes by_bitmap{Changes::Source::DirtyBitmap, {}};
  EXPECT_THAT([&] { NbdExport(target_of(unix_uri(folder / "s")), by_bitmap); },
              Fails(Outcome::Io, "the server requires TLS"));
  serve_on_unix({"--tls=off"});
  expect_refused(secure("right.psk"), Outcome::Io, "nbds+unix");
}

TEST_F(NbdTlsPsk, WantsAUriThatSaysTls) {
  NbdTarget target = target_of(unix_uri(folder / "s"));
  target.tls_psk_file = folder / "right.psk";
  expect_refused(target, Outcome::Usage, "does not begin with nbds");
}

TEST_F(NbdTlsPsk, TakesNoFilesFromTheUri) {
  const std::string with_file =
      "nbds+unix://alice@/?socket=" + folder / "s" + "&tls-psk-file=" + folder / "right.psk";
  expect_refused(target_of(with_file), Outcome::Usage, "TLS needs a pre-shared key or certificates");
}

// Certificates.
class NbdTlsCertificates : public NbdTls {
 protected:
  NbdTlsCertificates() {
    make_authority("ca");
    make_authority("other-ca");
    make_server("here", "IP:127.0.0.1");
    make_server("elsewhere", "DNS:elsewhere.example");
    make_client("client", "ca");
    make_client("stranger", "other-ca");
  }

  // Of one certificate authority: NAME.pem and NAME.key.
  void make_authority(const std::string& name) const {
    must({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
          "-days", "2", "-subj", "/CN=" + name, "-keyout", folder / (name + ".key"), "-out",
          folder / (name + ".pem")});
  }
  // A folder as nbdkit wants it, with a certificate for `subject`, such as "DNS:host".
  void make_server(const std::string& name, const std::string& subject) const {
    const std::string path = folder / name;
    std::filesystem::create_directory(path);
    must({"openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
          "/CN=server", "-keyout", path + "/server-key.pem", "-out", path + "/request.pem"});
    write_text(path + "/extensions", "subjectAltName=" + subject);
    must({"openssl", "x509", "-req", "-days", "2", "-in", path + "/request.pem", "-CA", folder / "ca.pem",
          "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", path + "/extensions", "-out",
          path + "/server-cert.pem"});
    std::filesystem::copy_file(folder / "ca.pem", path + "/ca-cert.pem");
  }
  void make_client(const std::string& name, const std::string& authority) const {
    std::filesystem::create_directory(folder / name);
    std::filesystem::copy_file(folder / (authority + ".pem"), folder / name + "/ca-cert.pem");
  }

  void serve_as(const std::string& name) {
    serve_on_tcp({"--tls=require", "--tls-certificates=" + folder / name});
  }
  NbdTarget secure(const std::string& client) const {
    NbdTarget target = target_of("nbds://127.0.0.1:" + server->port());
    target.tls_certificates = folder / client;
    return target;
  }
};

TEST_F(NbdTlsCertificates, ReadsFromTheServerThatTheyName) {
  serve_as("here");
  expect_content(secure("client"));
}

TEST_F(NbdTlsCertificates, RefuseAServerOfAnotherName) {
  serve_as("elsewhere");
  expect_refused(secure("client"), Outcome::Io, "cannot connect");
}

TEST_F(NbdTlsCertificates, RefuseAServerOfAnotherAuthority) {
  serve_as("here");
  expect_refused(secure("stranger"), Outcome::Io, "cannot connect");
}

TEST_F(NbdTlsCertificates, AreSuggestedWhereTheServerMissesTheClients) {
  serve_on_tcp({"--tls=require", "--tls-verify-peer", "--tls-certificates=" + folder / "here"});
  expect_refused(secure("client"), Outcome::Io, "the server may require a client certificate");
  make_authority("nobody");
  std::filesystem::copy_file(folder / "nobody.pem", folder / "client" + "/client-cert.pem");
  std::filesystem::copy_file(folder / "nobody.key", folder / "client" + "/client-key.pem");
  expect_refused(secure("client"), Outcome::Io, "the server may have refused the client certificate");
}

TEST_F(NbdTlsCertificates, RefuseWithoutAnAuthorityToVerifyBy) {
  serve_as("here");
  std::filesystem::remove(folder / "client" + "/ca-cert.pem");
  expect_refused(secure("client"), Outcome::Io, "ca-cert.pem: cannot read the CA certificate");
}

TEST_F(NbdTlsCertificates, RefuseAnAuthorityThatIsNotACertificate) {
  serve_as("here");
  write_text(folder / "client" + "/ca-cert.pem", std::string());
  expect_refused(secure("client"), Outcome::Io, "");
}

TEST_F(NbdTlsCertificates, RefuseAFolderThatIsNotThere) {
  serve_as("here");
  expect_refused(secure("no-such-folder"), Outcome::Io, "no-such-folder");
}

TEST_F(NbdTlsCertificates, RefuseATransportWithoutNames) {
  serve_on_unix({"--tls=require", "--tls-certificates=" + folder / "here"});
  NbdTarget target = target_of("nbds+unix:///?socket=" + folder / "s");
  target.tls_certificates = folder / "client";
  expect_refused(target, Outcome::Usage, "no host name to check a certificate against");
}

TEST_F(NbdTlsCertificates, RefuseAServerThatSpeaksPlainTextOnly) {
  serve_on_tcp({"--tls=off"});
  expect_refused(secure("client"), Outcome::Io, "nbds://127.0.0.1");
}

}  // namespace
}  // namespace qchain::tests
