// Figure: one result of `openmoe analyze`, as numbers and as pictures of them. What writes CSV,
// HDF5, JSON, SVG and HTML reads only this.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace openmoe {

// A text, a whole number or a number; a number that is not computable is NaN: empty in CSV, null in
// JSON, NaN in HDF5, a dash in the report.
struct Cell {
  enum class Kind { text, integer, number };
  Cell(std::string value) : kind(Kind::text), text(std::move(value)) {}  // NOLINT: implicit
  Cell(const char* value) : kind(Kind::text), text(value) {}             // NOLINT
  Cell(std::int64_t value) : kind(Kind::integer), integer(value) {}      // NOLINT
  Cell(double value) : kind(Kind::number), number(value) {}              // NOLINT

  Kind kind;
  std::string text;
  std::int64_t integer = 0;
  double number = 0.0;
};

// Every column holds one type.
struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;
};

// Shares as rows of coloured cells; none where a value is NaN.
struct Heatmap {
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::vector<std::vector<double>> values;
};

struct Series {
  std::string name;
  std::vector<double> x, y;
};
struct LinePlot {
  std::vector<Series> series;
  bool log_x = false;  // 0 is drawn left of 1
  bool from_zero = true;
};

// Groups of bars beside each other, with intervals where low < high; no bar where a value is NaN.
struct BarPlot {
  std::vector<std::string> groups;
  std::vector<std::string> series;
  std::vector<std::vector<double>> values;     // (groups, series)
  std::vector<std::vector<double>> low, high;  // the same, or empty
};

struct Plot {
  std::string title;    // what is shown, in a line
  std::string x_label;  // of the columns, of x, of the groups
  std::string y_label;
  std::variant<Heatmap, LinePlot, BarPlot> shape;
};

struct Figure {
  std::string id;     // name of its files
  std::string paper;  // "Figure 5", "Tables 9 and 15"; "": not in the paper
  std::string title;
  std::string definition;  // what is counted, exactly
  std::string finding;     // its numbers in a sentence
  std::string absence;     // why its table is empty, where it is
  Table table;
  std::vector<Plot> plots;
};

}  // namespace openmoe
