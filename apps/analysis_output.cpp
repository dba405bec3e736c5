#include "apps/analysis_output.h"

#include <charconv>
#include <filesystem>

#include "apps/durable_files.h"
#include "apps/svg_plot.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/h5_file.h"

namespace openmoe {
namespace {

// Tables longer than this are in CSV and HDF5 only.
constexpr std::size_t kMaxJsonRows = 4000;

// The shortest text that reads back as the same number.
std::string exact(double value) {
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
      return cell.number;
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

void write_analysis(const std::string& folder, const std::vector<Figure>& figures,
                    const AnalysisSubject& subject) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw UserError("--out " + folder + ": cannot create the folder: " + error.message());
  nlohmann::ordered_json results;
  results["command"] = subject.command;
  for (const auto& [name, value] : subject.facts) results["facts"][name] = value;
  const std::string part = folder + "/results.h5.tmp";
  H5File file(part, H5File::Mode::create);
  file.set_attribute("", "format", std::string("openmoe-routing-analysis"));
  file.set_attribute("", "command", subject.command);
  for (const Figure& figure : figures) {
    replace_file(folder + "/" + figure.id + ".csv", csv_of(figure.table));
    for (std::size_t p = 0; p < figure.plots.size(); ++p)
      replace_file(concat(folder, "/", figure.id, "-", p + 1, ".svg"), svg_file(figure.plots[p]));
    write_table(file, figure.id, figure);
    results["figures"].push_back(json_of(figure, kMaxJsonRows));
  }
  file.close();
  std::filesystem::rename(part, folder + "/results.h5", error);
  if (error) throw RuntimeFault(folder + "/results.h5: " + error.message());
  replace_file(folder + "/results.json",
               results.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  replace_file(folder + "/report.html", html_report(figures, subject));
}

}  // namespace openmoe
