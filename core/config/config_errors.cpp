#include "core/config/config_errors.h"

#include <algorithm>
#include <numeric>

#include "core/base/error.h"

namespace openmoe {
namespace {

// Levenshtein distance, one row at a time.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

void ConfigErrors::add(const std::string& origin, const std::string& path,
                       const std::string& problem) {
  lines_.push_back(origin + ": " + (path.empty() ? "" : path + ": ") + problem);
  paths_.insert(path);
}

bool ConfigErrors::clean(std::initializer_list<std::string_view> paths) const {
  return std::none_of(paths.begin(), paths.end(),
                      [this](std::string_view path) { return paths_.contains(path); });
}

void ConfigErrors::throw_if_any(const std::string& subject) const {
  if (lines_.empty()) return;
  std::string text = subject + " has " + std::to_string(lines_.size()) +
                     (lines_.size() == 1 ? " error:" : " errors:");
  for (const std::string& line : lines_) text += "\n  " + line;
  throw UserError(text);
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t kLongestWord =
      64;  // longer words are no misspelling, and the search is quadratic
  if (word.size() > kLongestWord) return "";
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 2) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance >= best_distance) continue;
    best = candidate;
    best_distance = distance;
  }
  return best;
}

}  // namespace openmoe
