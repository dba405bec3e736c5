// ConfigErrors: everything found wrong in a configuration file, so that one UserError can name all
// of it at once.
#pragma once

#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace openmoe {

class ConfigErrors {
 public:
  // `origin`: file, or the command-line option; `path`: JSON path such as data.phases[1].mixture,
  // or "" for the whole file.
  void add(const std::string& origin, const std::string& path, const std::string& problem);

  bool empty() const { return lines_.empty(); }
  // No error names any of these paths; a check of several fields is only worth making then.
  bool clean(std::initializer_list<std::string_view> paths) const;

  // Throws UserError with one line per error when there are any. `subject`: "recipe X", for the
  // head line.
  void throw_if_any(const std::string& subject) const;

 private:
  std::vector<std::string> lines_;
  std::set<std::string, std::less<>> paths_;
};

// The candidate that is spelled most like `word` (edit distance), or "" when none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace openmoe
