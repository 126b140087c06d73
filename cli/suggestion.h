#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qchain {

/// How many insertions, deletions, substitutions and swaps of neighbours make `b` of `a`: the
/// Damerau-Levenshtein distance in which no part is edited twice (optimal string alignment).
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The one of `known` that a mistyped `word` probably means: the only one that begins with `word`, if that
/// has 3 letters or more; of several, or where there is none, the nearest within an edit distance of 2. Empty
/// where there is none, or several are equally near.
std::string suggestion_for(std::string_view word, const std::vector<std::string>& known);

}  // namespace qchain
