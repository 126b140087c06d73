#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qchain {

/// The Damerau-Levenshtein distance of `a` and `b` (optimal string alignment): the number of insertions,
/// deletions, substitutions and swaps of adjacent characters.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The element of `known` that a mistyped `word` probably means: the only one that begins with `word`, if
/// `word` has at least 3 letters; else the nearest within an edit distance of 2. Empty if there is none, or
/// several are equally near.
std::string suggestion_for(std::string_view word, const std::vector<std::string>& known);

}  // namespace qchain
