#include "apps/task_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <sstream>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

std::string known_keys(const Json& value) {
  if (!value.is_object()) return value.is_array() ? "a list" : "no object";
  std::string keys;
  for (const auto& item : value.items()) keys += (keys.empty() ? "" : ", ") + item.key();
  return keys;
}

std::string trim(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

// The marks that HellaSwag's WikiHow half carries: " [title]" ends a sentence, other brackets go.
std::string without_wikihow_marks(std::string text) {
  text = trim(text);
  replace_all(text, " [title]", ". ");
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t end = text[i] == '[' ? text.find(']', i) : std::string::npos;
    if (end != std::string::npos)
      i = end;
    else
      out += text[i];
  }
  replace_all(out, "  ", " ");
  return out;
}

std::string apply_filter(const std::string& text, const std::string& filter,
                         const std::string& place) {
  std::string out = text;
  if (filter == "trim") return trim(text);
  if (filter == "hellaswag") return without_wikihow_marks(text);
  if (filter == "lower") {
    std::transform(out.begin(), out.end(), out.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
  }
  if (filter == "capitalize") {  // as Python's: the first letter up, the others down
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<char>(i == 0 ? std::toupper(static_cast<unsigned char>(out[i]))
                                        : std::tolower(static_cast<unsigned char>(out[i])));
    return out;
  }
  for (const bool is_before : {true, false}) {
    const std::string name = is_before ? "before:" : "after:";
    if (!filter.starts_with(name)) continue;
    const std::string mark = filter.substr(name.size());
    const std::size_t at = text.find(mark);
    if (at == std::string::npos)
      throw UserError(concat(place, ": \"", text, "\" does not hold \"", mark,
                             "\", where its template cuts it"));
    return is_before ? text.substr(0, at) : text.substr(at + mark.size());
  }
  throw UserError(place + ": unknown filter \"" + filter +
                  "\"; allowed: trim, lower, capitalize, hellaswag, last, before:X, after:X");
}

std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

// Characters [begin, end) of UTF-8 text.
std::string slice(const std::string& text, std::int64_t begin, std::int64_t end) {
  std::string out;
  std::int64_t index = -1;
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) ++index;
    if (index >= begin && index < end) out += c;
  }
  return out;
}

std::string fill_field(const std::string& field, const Json& example, const std::string& place) {
  std::istringstream parts(field);
  std::string path, filter;
  std::getline(parts, path, '|');
  const Json* value = &value_at(example, trim(path), place);
  std::string text;
  bool is_text = false;
  while (std::getline(parts, filter, '|')) {
    if (filter.starts_with("slice:")) {
      const std::size_t colon = filter.find(':', 6);
      const auto bound = [&](const std::string& name) {
        const Json& number = value_at(example, name, place);
        return number.is_number_integer() ? number.get<std::int64_t>() : 0;
      };
      text = slice(is_text ? text : text_of(*value), bound(filter.substr(6, colon - 6)),
                   bound(colon == std::string::npos ? "" : filter.substr(colon + 1)));
      is_text = true;
      continue;
    }
    if (filter == "last" && value->is_array() && !value->empty()) {
      value = &value->back();
      continue;
    }
    text = apply_filter(is_text ? text : text_of(*value), filter, place);
    is_text = true;
  }
  return is_text ? text : text_of(*value);
}

}  // namespace

const Json& value_at(const Json& example, const std::string& path, const std::string& place) {
  const Json* value = &example;
  std::string name;
  const auto fail = [&](const std::string& part) {
    throw UserError(place + ": has no \"" + part + "\" of \"" + path +
                    "\"; there: " + known_keys(*value));
  };
  for (std::size_t i = 0; i <= path.size(); ++i) {
    const char c = i < path.size() ? path[i] : '.';
    if (c != '.' && c != '[' && c != ']') {
      name += c;
      continue;
    }
    if (name.empty()) continue;
    if (c == ']') {
      const auto index = static_cast<std::size_t>(std::strtoul(name.c_str(), nullptr, 10));
      if (!value->is_array() || index >= value->size()) fail("[" + name + "]");
      value = &(*value)[index];
    } else {
      if (!value->is_object() || !value->contains(name)) fail(name);
      value = &(*value)[name];
    }
    name.clear();
  }
  return *value;
}

std::string fill_template(const std::string& text, const Json& example, const std::string& place) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t open; (open = text.find("{{", at)) != std::string::npos;) {
    const std::size_t close = text.find("}}", open);
    if (close == std::string::npos)
      throw UserError(place + ": its template has {{ without }}: " + text.substr(open));
    out += text.substr(at, open - at) +
           fill_field(text.substr(open + 2, close - open - 2), example, place);
    at = close + 2;
  }
  return out + text.substr(at);
}

std::string normalise_answer(const std::string& text) {
  std::string letters;
  for (const char c : text)
    if (!std::ispunct(static_cast<unsigned char>(c)))
      letters += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::istringstream words(letters);
  std::string out;
  for (std::string word; words >> word;)
    if (word != "a" && word != "an" && word != "the") out += (out.empty() ? "" : " ") + word;
  return out;
}

bool exact_match(const std::string& answer, const std::string& target) {
  return normalise_answer(answer) == normalise_answer(target);
}

double token_f1(const std::string& answer, const std::string& target) {
  const auto words = [](const std::string& text) {
    std::istringstream in(normalise_answer(text));
    std::map<std::string, int> counts;
    for (std::string word; in >> word;) ++counts[word];
    return counts;
  };
  const auto size = [](const std::map<std::string, int>& counts) {
    int total = 0;
    for (const auto& entry : counts) total += entry.second;
    return total;
  };
  const auto ours = words(answer), theirs = words(target);
  if (ours.empty() || theirs.empty()) return ours.empty() && theirs.empty() ? 1.0 : 0.0;
  int common = 0;
  for (const auto& [word, count] : ours) {
    const auto found = theirs.find(word);
    if (found != theirs.end()) common += std::min(count, found->second);
  }
  return common == 0 ? 0.0 : 2.0 * common / (size(ours) + size(theirs));
}

// The rules of mteval-v13a: punctuation apart, except . and , between digits and - after other than
// a digit.
std::vector<std::string> tokens_13a(const std::string& line) {
  std::string text = line;
  replace_all(text, "<skipped>", "");
  replace_all(text, "-\n", "");
  replace_all(text, "\n", " ");
  replace_all(text, "&quot;", "\"");
  replace_all(text, "&amp;", "&");
  replace_all(text, "&lt;", "<");
  replace_all(text, "&gt;", ">");
  text = " " + text + " ";
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto is_apart = [](char c) {  // {-~ [-` space-& (-+ :-@ /
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= '!' && c <= '&') ||
           (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
  };
  std::string first;
  for (const char c : text) first += is_apart(c) ? std::string{' ', c, ' '} : std::string(1, c);
  const auto split = [](const std::string& from, const auto& where) {
    // Each match takes two characters, as a substitution over the text does: the second of a pair
    // cannot begin the next.
    std::string out;
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (i + 1 < from.size() && where(from[i], from[i + 1], out)) {
        ++i;
        continue;
      }
      out += from[i];
    }
    return out;
  };
  const auto is_mark = [](char c) { return c == '.' || c == ','; };
  const std::string second = split(first, [&](char a, char b, std::string& out) {
    if (is_digit(a) || !is_mark(b)) return false;
    out += std::string{a, ' ', b, ' '};
    return true;
  });
  const std::string third = split(second, [&](char a, char b, std::string& out) {
    if (!is_mark(a) || is_digit(b)) return false;
    out += std::string{' ', a, ' ', b};
    return true;
  });
  const std::string fourth = split(third, [&](char a, char b, std::string& out) {
    if (!is_digit(a) || b != '-') return false;
    out += std::string{a, ' ', b, ' '};
    return true;
  });
  std::istringstream words(fourth);
  std::vector<std::string> tokens;
  for (std::string word; words >> word;) tokens.push_back(word);
  return tokens;
}

double corpus_bleu(const std::vector<std::string>& answers,
                   const std::vector<std::string>& targets) {
  constexpr std::size_t kOrders = 4;
  std::array<double, kOrders> matches{}, totals{};
  double answer_length = 0.0, target_length = 0.0;
  const auto ngrams = [](const std::vector<std::string>& tokens, std::size_t n) {
    std::map<std::vector<std::string>, int> counts;
    for (std::size_t i = 0; i + n <= tokens.size(); ++i)
      ++counts[{tokens.begin() + static_cast<std::ptrdiff_t>(i),
                tokens.begin() + static_cast<std::ptrdiff_t>(i + n)}];
    return counts;
  };
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto ours = tokens_13a(answers[i]), theirs = tokens_13a(targets[i]);
    answer_length += static_cast<double>(ours.size());
    target_length += static_cast<double>(theirs.size());
    for (std::size_t n = 1; n <= kOrders; ++n) {
      const auto wanted = ngrams(theirs, n);
      for (const auto& [gram, count] : ngrams(ours, n)) {
        totals[n - 1] += count;
        const auto found = wanted.find(gram);
        if (found != wanted.end()) matches[n - 1] += std::min(count, found->second);
      }
    }
  }
  if (std::all_of(matches.begin(), matches.end(), [](double m) { return m == 0.0; })) return 0.0;
  double log_sum = 0.0, smoothing = 1.0;
  for (std::size_t n = 0; n < kOrders; ++n) {
    if (totals[n] == 0.0) return 0.0;  // no text of this length at all
    double precision = 100.0 * matches[n] / totals[n];
    if (matches[n] == 0.0) {
      smoothing *= 2.0;
      precision = 100.0 / (smoothing * totals[n]);
    }
    log_sum += std::log(precision) / static_cast<double>(kOrders);
  }
  const double brevity =
      answer_length < target_length ? std::exp(1.0 - target_length / answer_length) : 1.0;
  return brevity * std::exp(log_sum);
}

}  // namespace openmoe
