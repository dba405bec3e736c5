#include "apps/analysis_output.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "apps/svg_plot.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"
#include "data/h5_file.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

// Tables longer than this are in CSV and HDF5 only.
constexpr std::size_t kMaxJsonRows = 4000;

constexpr const char* kFormat = "openmoe-routing-analysis";
constexpr const char* kFiles = "/files.json";
constexpr const char* kTables = "results.h5";
constexpr const char* kTablesPart = "results.h5.tmp";

void write_file_list(const std::string& folder, const std::set<std::string>& names) {
  const nlohmann::ordered_json list = {{"format", kFormat}, {"files", names}};
  replace_file(folder + kFiles, list.dump(1) + "\n");
}

// Of a file of the folder itself, not a path to elsewhere.
bool is_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && fs::path(name).filename() == name;
}

std::set<std::string> read_file_list(const std::string& folder) {
  std::ifstream file(folder + kFiles);
  const auto list = nlohmann::json::parse(file, nullptr, false);
  const auto damaged = [&] {
    return UserError(concat("--out ", folder,
                            ": its files.json is not the list of an analysis' "
                            "files; remove the folder or name another"));
  };
  if (!list.is_object() || list.value("format", nlohmann::json()) != kFormat ||
      !list.contains("files") || !list["files"].is_array())
    throw damaged();
  std::set<std::string> names;
  for (const auto& name : list["files"]) {
    if (!name.is_string() || !is_file_name(name.get<std::string>())) throw damaged();
    names.insert(name.get<std::string>());
  }
  return names;
}

std::set<std::string> files_of(const std::vector<Figure>& figures) {
  std::set<std::string> names = {kTables, kTablesPart, "results.json", "report.html"};
  for (const Figure& figure : figures) {
    names.insert(figure.id + ".csv");
    for (std::size_t p = 0; p < figure.plots.size(); ++p)
      names.insert(concat(figure.id, "-", p + 1, ".svg"));
  }
  return names;
}

// The list names all that may be there, whenever this is stopped.
void remove_earlier(const std::string& folder, const std::set<std::string>& wanted) {
  const std::set<std::string> earlier = read_file_list(folder);
  std::set<std::string> all = wanted;
  all.insert(earlier.begin(), earlier.end());
  write_file_list(folder, all);
  for (const std::string& name : earlier) {
    std::error_code error;
    if (wanted.count(name) == 0) fs::remove(fs::path(folder) / name, error);
    if (error)
      throw RuntimeFault(concat(folder, "/", name,
                                ": of an earlier analysis, cannot be removed: ", error.message()));
  }
}

// The shortest text that reads back as the same number.
std::string exact(double value) {
  if (std::isnan(value)) return "";  // not computable
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : "nan";
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string result = "\"";
  for (const char c : text) result += c == '"' ? std::string("\"\"") : std::string(1, c);
  return result + "\"";
}

std::string text_of(const Cell& cell) {
  switch (cell.kind) {
    case Cell::Kind::text:
      return quoted(cell.text);
    case Cell::Kind::integer:
      return std::to_string(cell.integer);
    case Cell::Kind::number:
      return exact(cell.number);
  }
  return "";
}

nlohmann::ordered_json json_of(const Cell& cell) {
  switch (cell.kind) {
    case Cell::Kind::text:
      return cell.text;
    case Cell::Kind::integer:
      return cell.integer;
    case Cell::Kind::number:
      return std::isnan(cell.number) ? nlohmann::ordered_json()
                                     : nlohmann::ordered_json(cell.number);
  }
  return nullptr;
}

void write_table(H5File& file, const std::string& group, const Figure& figure) {
  const Table& table = figure.table;
  file.create_group(group);
  const auto rows = static_cast<std::int64_t>(table.rows.size());
  const H5Layout layout{std::min<std::int64_t>(rows, 16384), 4};
  for (std::size_t c = 0; c < table.columns.size(); ++c) {
    const std::string name = group + "/" + table.columns[c];
    const Cell::Kind kind = table.rows.front()[c].kind;
    std::vector<std::string> texts;
    std::vector<std::int64_t> integers;
    std::vector<double> numbers;
    for (const std::vector<Cell>& row : table.rows) {
      OPENMOE_CHECK(row.size() == table.columns.size() && row[c].kind == kind, figure.id,
                    " column ", table.columns[c]);
      if (kind == Cell::Kind::text) texts.push_back(row[c].text);
      if (kind == Cell::Kind::integer) integers.push_back(row[c].integer);
      if (kind == Cell::Kind::number) numbers.push_back(row[c].number);
    }
    if (kind == Cell::Kind::text) file.write_strings(name, texts);
    if (kind == Cell::Kind::integer) file.write_raw(name, "i64", {rows}, integers.data(), layout);
    if (kind == Cell::Kind::number) file.write_raw(name, "f64", {rows}, numbers.data(), layout);
  }
  file.set_attribute(group, "title", figure.title);
  file.set_attribute(group, "paper", figure.paper);
  file.set_attribute(group, "definition", figure.definition);
}

}  // namespace

std::string csv_of(const Table& table) {
  std::string csv;
  for (std::size_t c = 0; c < table.columns.size(); ++c)
    csv += (c > 0 ? "," : "") + quoted(table.columns[c]);
  csv += "\n";
  for (const std::vector<Cell>& row : table.rows) {
    for (std::size_t c = 0; c < row.size(); ++c) csv += (c > 0 ? "," : "") + text_of(row[c]);
    csv += "\n";
  }
  return csv;
}

nlohmann::ordered_json json_of(const Figure& figure, std::size_t max_rows) {
  nlohmann::ordered_json json = {{"id", figure.id},
                                 {"paper", figure.paper},
                                 {"title", figure.title},
                                 {"definition", figure.definition},
                                 {"finding", figure.finding},
                                 {"columns", figure.table.columns},
                                 {"num_rows", figure.table.rows.size()}};
  if (figure.table.rows.size() > max_rows) return json;
  auto rows = nlohmann::ordered_json::array();
  for (const std::vector<Cell>& row : figure.table.rows) {
    auto cells = nlohmann::ordered_json::array();
    for (const Cell& cell : row) cells.push_back(json_of(cell));
    rows.push_back(std::move(cells));
  }
  json["rows"] = std::move(rows);
  return json;
}

void open_output(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw UserError("--out " + folder + ": cannot create the folder: " + error.message());
  std::set<std::string> names;
  if (fs::exists(folder + kFiles, error)) {
    names = read_file_list(folder);
  } else {
    const fs::directory_iterator found(folder, error);
    if (!error && found != fs::directory_iterator())
      throw UserError(concat("--out ", folder, ": holds files that no analysis wrote, such as ",
                             found->path().filename().string(), "; name another folder"));
  }
  try {
    write_file_list(folder, names);
  } catch (const RuntimeFault& fault) {
    throw UserError(
        concat("--out ", folder, ": cannot be written: ", fault.what(), "; name another folder"));
  }
}

void write_analysis(const std::string& folder, const std::vector<Figure>& figures,
                    const AnalysisSubject& subject) {
  const std::set<std::string> names = files_of(figures);
  remove_earlier(folder, names);
  std::error_code error;
  nlohmann::ordered_json results;
  results["command"] = subject.command;
  for (const auto& [name, value] : subject.facts) results["facts"][name] = value;
  results["left_out"] = nlohmann::ordered_json::object();
  for (const auto& [title, reason] : subject.left_out) results["left_out"][title] = reason;
  const std::string part = concat(folder, "/", kTablesPart);
  H5File file(part, H5File::Mode::create);
  file.set_attribute("", "format", std::string(kFormat));
  file.set_attribute("", "command", subject.command);
  for (const Figure& figure : figures) {
    replace_file(folder + "/" + figure.id + ".csv", csv_of(figure.table));
    for (std::size_t p = 0; p < figure.plots.size(); ++p)
      replace_file(concat(folder, "/", figure.id, "-", p + 1, ".svg"), svg_file(figure.plots[p]));
    write_table(file, figure.id, figure);
    results["figures"].push_back(json_of(figure, kMaxJsonRows));
  }
  file.close();
  publish_file(part, concat(folder, "/", kTables));
  replace_file(folder + "/results.json",
               results.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  replace_file(folder + "/report.html", html_report(figures, subject));
  write_file_list(folder, names);
}

}  // namespace openmoe
