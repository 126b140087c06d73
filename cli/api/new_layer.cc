#include "cli/api/new_layer.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <ctime>

#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

std::string recorded_time() {
  const char* const epoch = std::getenv("SOURCE_DATE_EPOCH");
  if (epoch == nullptr) return iso_time(std::time(nullptr));
  const std::string text = epoch;
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds < 0) {
    throw Error(Outcome::Usage,
                fmt::format("SOURCE_DATE_EPOCH: \"{}\": invalid number of seconds", escaped(text)));
  }
  return iso_time(seconds);
}

}  // namespace qchain
