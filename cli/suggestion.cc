#include "cli/suggestion.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace qchain {

namespace {

constexpr std::size_t kMaxDistance = 2;
constexpr std::size_t kMinPrefix = 3;

using Names = std::vector<std::string>;

std::string nearest(std::string_view word, const Names& names) {
  // At a distance as long as the word, nothing of it would be left.
  std::size_t least = std::min(kMaxDistance + 1, word.size());
  std::string found;
  for (const std::string& name : names) {
    if (std::max(name.size(), word.size()) - std::min(name.size(), word.size()) > kMaxDistance) continue;
    const std::size_t distance = edit_distance(word, name);
    if (distance > least) continue;
    // In case of a tie there is no suggestion.
    found = distance < least ? name : std::string();
    least = distance;
  }
  return found;
}

Names beginning_with(std::string_view prefix, const Names& names) {
  Names found;
  if (prefix.size() < kMinPrefix) return found;
  for (const std::string& name : names) {
    if (name.starts_with(prefix)) found.push_back(name);
  }
  return found;
}

}  // namespace

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the matrix: distances from prefixes of `b` to a[0, i-2), a[0, i-1) and a[0, i).
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> last(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, last);
    std::swap(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, substituted});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string suggestion_for(std::string_view word, const std::vector<std::string>& known) {
  const Names completions = beginning_with(word, known);
  if (completions.size() == 1) return completions.front();
  return nearest(word, completions.empty() ? known : completions);
}

}  // namespace qchain
