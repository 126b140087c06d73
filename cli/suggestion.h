#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qchain {

/// How many insertions, deletions, substitutions and swaps of neighbours make `b` of `a`: the
/// Damerau-Levenshtein distance in which no part is edited twice (optimal string alignment).
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The one of `known` that a mistyped `word` probably means: the only nearest one within an edit distance of
/// 2, else the only one that begins with `word`, if that has 3 letters or more. Empty: there is none, or
/// several are as likely.
std::string suggestion_for(std::string_view word, const std::vector<std::string>& known);

}  // namespace qchain
