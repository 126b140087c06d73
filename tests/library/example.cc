// Backs up a disk with the library: a full image and an increment, each verified, restored, and its digest
// and the number of layers beneath and with it printed. Two of them at the same time, in two threads.
//
//     example DIRECTORY URI BITMAP      a full image, and an increment by BITMAP, of two copies of the disk
//     example cancel DIRECTORY URI      a pull that is cancelled when it has begun
#include <qchain/qchain.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

std::mutex output;

void say(const std::string& line) {
  const std::lock_guard lock(output);
  std::puts(line.c_str());
}

qchain::PullResult pull(const std::string& uri, const std::string& name, const std::string& parent,
                        const std::string& bitmap) {
  qchain::PullRequest request;
  request.uri = uri;
  request.output = name;
  request.parent = parent;
  request.bitmap = bitmap;
  request.nbd.connections = 2;
  qchain::Run run;
  run.warn = [&](const std::string& message) { say(name + ": warning: " + message); };
  return qchain::pull(request, run);
}

// The disk as the chain has it, in one file, with a digest of its own.
std::string digest_of_restored(const std::string& image) {
  qchain::RestoreRequest request;
  request.image = image;
  request.destination = image + ".raw";
  const qchain::RestoreResult restored = qchain::restore(request);
  if (!restored.is_verified) throw qchain::Error(restored.outcome, image + ": not verified");
  qchain::DigestRequest digest;
  digest.source = request.destination;
  digest.is_raw = true;
  return "sha256:" + qchain::digest(digest).hex;
}

void verify(const std::string& image) {
  qchain::VerifyRequest request;
  request.image = image;
  const qchain::VerifyResult result = qchain::verify(request);
  if (result.outcome != qchain::Outcome::Done) {
    throw qchain::Error(result.outcome, result.verdicts.front().message);
  }
}

std::size_t layers_of(const std::string& image) {
  qchain::InspectRequest request;
  request.image = image;
  request.map = true;
  const qchain::InspectResult chain = qchain::inspect(request);
  if (!chain.is_complete) throw qchain::Error(chain.outcome, chain.problems.front().verdict.message);
  std::uint64_t mapped = 0;
  while (const std::optional<qchain::MapPiece> piece = chain.map()) mapped += piece->range.length();
  if (mapped != chain.layers.front().virtual_size) throw qchain::Error(qchain::Outcome::Mismatch, image);
  return chain.layers.size();
}

void back_up(const std::string& directory, const std::string& uri, const std::string& bitmap) {
  const qchain::PullResult full = pull(uri, directory + "/full.qcow2", "", "");
  const qchain::PullResult increment = pull(uri, directory + "/inc.qcow2", full.output, bitmap);
  for (const qchain::PullResult& layer : {full, increment}) {
    verify(layer.output);
    const std::string restored = digest_of_restored(layer.output);
    if (restored != layer.digest) throw qchain::Error(qchain::Outcome::Mismatch, layer.output);
    say(layer.output + " " + layer.digest + " " + std::to_string(layer.data_bytes) + " " +
        std::to_string(layers_of(layer.output)));
  }
}

int cancel(const std::string& directory, const std::string& uri) {
  qchain::Cancellation cancellation;
  qchain::PullRequest request;
  request.uri = uri;
  request.output = directory + "/cancelled.qcow2";
  qchain::Run run;
  run.cancellation = &cancellation;
  run.progress = [&](const char*, std::uint64_t, std::uint64_t) {
    cancellation.request(qchain::Outcome::Interrupted);
  };
  try {
    qchain::pull(request, run);
  } catch (const qchain::Error& error) {
    say(error.what());
    return error.outcome() == qchain::Outcome::Interrupted ? 0 : 1;
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() != 3) return 2;
  if (words[0] == "cancel") return cancel(words[1], words[2]);
  std::array<std::string, 2> failures;
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < failures.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          back_up(words[0] + "/" + std::to_string(i), words[1], words[2]);
        } catch (const std::exception& error) {
          failures[i] = error.what();
        }
      });
    }
  }
  for (const std::string& failure : failures) {
    if (!failure.empty()) std::fprintf(stderr, "%s\n", failure.c_str());
  }
  return failures[0].empty() && failures[1].empty() ? 0 : 1;
}
