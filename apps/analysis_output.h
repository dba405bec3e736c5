// Files of `openmoe analyze`: for each figure FIGURE.csv and FIGURE-N.svg, all tables in results.h5
// (one group a figure, one dataset a column), all of it but long tables in results.json, and
// report.html, which needs no network and no scripts. files.json lists them, so that the next
// analysis in the same folder removes those that it does not write itself.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/figure.h"

namespace openmoe {

// What was analysed: shown at the top of the report.
struct AnalysisSubject {
  std::string command;
  std::vector<std::pair<std::string, std::string>> facts;
  std::vector<std::pair<std::string, std::string>> left_out;  // titles of figures, and why
};

std::string csv_of(const Table& table);  // RFC 4180, texts quoted where needed
nlohmann::ordered_json json_of(const Figure& figure, std::size_t max_rows);
std::string html_report(const std::vector<Figure>& figures, const AnalysisSubject& subject);
// Creates the folder with a files.json. Throws UserError when it cannot be written, or holds files
// that no analysis wrote.
void open_output(const std::string& folder);

// Writes everything to a folder of open_output. Throws UserError or RuntimeFault.
void write_analysis(const std::string& folder, const std::vector<Figure>& figures,
                    const AnalysisSubject& subject);

}  // namespace openmoe
