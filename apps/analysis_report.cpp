// The report: one HTML file with everything in it, and no scripts.
#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "apps/analysis_output.h"
#include "apps/analysis_text.h"
#include "apps/svg_plot.h"
#include "core/base/check.h"

namespace openmoe {
namespace {

constexpr std::size_t kShownRows = 60;
// Bytes, after which pictures are links to their files, and of all lists of tokens: the page stays
// below 5 MB whatever the number of experts, layers and runs.
constexpr std::size_t kMostPictures = 3'000'000;
constexpr std::size_t kMostShown = 60;  // characters of a token
constexpr std::size_t kMostTokens = 1'000'000;

const char* const kPageStyle = R"(
:root{color-scheme:light dark}
body{margin:0;font:16px/1.5 system-ui,sans-serif;color:#1c1e21;background:#fff}
a{color:#0b5cad}
main,header,nav{max-width:64rem;margin:0 auto;padding:0 1rem}
nav ol{columns:2;column-gap:2rem;padding-left:1.4rem}
h1{font-size:1.7rem;margin:1.5rem 0 .5rem}
h2{font-size:1.25rem;margin:2.5rem 0 .25rem;border-top:1px solid #d5d9de;padding-top:1.25rem}
.paper{color:#5b6168;font-weight:400;font-size:1rem}
.finding{border-left:4px solid #0b5cad;padding:.25rem .75rem;background:#f1f5fa}
.plots svg{max-width:100%;height:auto;display:block;margin:.75rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem}
th,td{border-bottom:1px solid #d5d9de;padding:.2rem .6rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
summary{cursor:pointer}
code{font-size:.85em;overflow-wrap:anywhere}
.token{white-space:pre;border:1px solid #d5d9de;border-radius:3px;padding:0 .25em;margin-right:.15em}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:#fff;padding:.5rem}
:focus-visible{outline:3px solid #b3440b;outline-offset:2px}
main:focus-visible,nav:focus-visible{outline:none}
@media(prefers-color-scheme:dark){
body{color:#e8eaed;background:#16181b}a{color:#6cb2ff}
h2,th,td,.token{border-color:#3c4249}.paper{color:#a7adb5}
.finding{background:#1d2733;border-color:#6cb2ff}.skip:focus{background:#16181b}
:focus-visible{outline-color:#ff9a5c}}
@media(max-width:40rem){nav ol{columns:1}}
@media print{details{display:none}}
)";

std::string cell_text(const Cell& cell) {
  switch (cell.kind) {
    case Cell::Kind::text:
      return "<td>" + escaped(cell.text) + "</td>";
    case Cell::Kind::integer:
      return concat("<td class=\"n\">", cell.integer, "</td>");
    case Cell::Kind::number: {
      if (std::isnan(cell.number)) return "<td class=\"n\">\u2013</td>";  // not computable
      char text[32];
      std::snprintf(text, sizeof text, "%.4g", cell.number);
      return concat("<td class=\"n\">", text, "</td>");
    }
  }
  return "";
}

void write_table(std::ostream& out, const Figure& figure) {
  const std::size_t shown = std::min(kShownRows, figure.table.rows.size());
  out << "<details><summary>Table: " << shown << " of " << figure.table.rows.size()
      << " rows</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"table "
         "of "
      << escaped(figure.title) << "\"><table><thead><tr>";
  for (const std::string& column : figure.table.columns)
    out << "<th scope=\"col\">" << escaped(column) << "</th>";
  out << "</tr></thead><tbody>";
  for (std::size_t r = 0; r < shown; ++r) {
    out << "<tr>";
    for (const Cell& cell : figure.table.rows[r]) out << cell_text(cell);
    out << "</tr>";
  }
  out << "</tbody></table></div></details>\n";
}

// Tables 9 and 15: one row for each expert, its tokens one after the other.
void write_top_tokens(std::ostream& out, const Figure& figure) {
  std::map<std::int64_t, std::map<std::int64_t, std::string>> layers;
  std::vector<const std::vector<Cell>*> by_rank;
  for (const std::vector<Cell>& row : figure.table.rows) by_rank.push_back(&row);
  std::stable_sort(by_rank.begin(), by_rank.end(),
                   [](const auto* a, const auto* b) { return (*a)[2].integer < (*b)[2].integer; });
  std::size_t bytes = 0, shown = 0;
  for (; shown < by_rank.size() && bytes < kMostTokens; ++shown) {
    const std::vector<Cell>& row = *by_rank[shown];
    std::string& tokens = layers[row[0].integer][row[1].integer];
    if (tokens.empty()) bytes += 50;  // the row around them
    const std::string token = concat(
        "<span class=\"token\">", escaped(shortened(row[4].text, kMostShown)), "</span><small>",
        row[5].integer, " (", rounded(100.0 * row[6].number, 0), " %)</small> ");
    bytes += token.size();
    tokens += token;
  }
  if (shown < by_rank.size())
    out << "<p>The " << shown << " most frequent of " << by_rank.size()
        << " are shown here, by their rank; all are in the data.</p>\n";
  for (const auto& [layer, experts] : layers) {
    out << "<details" << (layer == layers.rbegin()->first ? " open" : "") << "><summary>layer "
        << layer << "</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" "
        << "aria-label=\"tokens of the experts of layer " << layer
        << "\"><table><thead><tr><th scope=\"col\">expert</th><th "
           "scope=\"col\">tokens</th></tr></thead><tbody>";
    for (const auto& [expert, tokens] : experts)
      out << "<tr><th scope=\"row\">" << expert << "</th><td>" << tokens << "</td></tr>";
    out << "</tbody></table></div></details>\n";
  }
}

// `pictures` counts the bytes of those on the page.
void write_figure(std::ostream& out, const Figure& figure, std::size_t& pictures) {
  out << "<section id=\"" << figure.id << "\" aria-labelledby=\"" << figure.id
      << "-title\"><h2 id=\"" << figure.id << "-title\">" << escaped(figure.title);
  if (!figure.paper.empty()) out << " <span class=\"paper\">" << escaped(figure.paper) << "</span>";
  out << "</h2>\n<p>" << escaped(figure.definition) << "</p>\n";
  if (!figure.finding.empty())
    out << "<p class=\"finding\">" << escaped(figure.finding) << "</p>\n";
  if (figure.id == "top_tokens") write_top_tokens(out, figure);
  out << "<div class=\"plots\">";
  for (std::size_t p = 0; p < figure.plots.size(); ++p) {
    const std::string svg = svg_of(figure.plots[p], concat(figure.id, "-plot-", p + 1));
    pictures += svg.size();
    if (pictures <= kMostPictures)
      out << svg << "\n";
    else
      out << "<p>Not on this page, which would be too large: <a href=\"" << figure.id << "-"
          << p + 1 << ".svg\">" << escaped(figure.plots[p].title) << "</a></p>\n";
    if (pictures > kMostPictures) pictures -= svg.size();
  }
  out << "</div>\n<p>Data: <a href=\"" << figure.id << ".csv\">" << figure.id
      << ".csv</a>, group <code>/" << figure.id
      << "</code> of <a href=\"results.h5\">results.h5</a>. <a href=\"#figures\">To the list</a>"
      << "</p>\n";
  write_table(out, figure);
  out << "</section>\n";
}

}  // namespace

std::string html_report(const std::vector<Figure>& figures, const AnalysisSubject& subject) {
  std::ostringstream out;
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\"><title>Routing analysis</title><style>"
      << kPageStyle << kPlotStyle << "</style></head><body>\n"
      << "<a class=\"skip\" href=\"#main\">Skip to the figures</a>\n"
      << "<header><h1>Routing analysis</h1><p>Made by <code>" << escaped(subject.command)
      << "</code></p><table><tbody>";
  for (const auto& [name, value] : subject.facts)
    out << "<tr><th scope=\"row\">" << escaped(name) << "</th><td>" << escaped(value)
        << "</td></tr>";
  out << "</tbody></table></header>\n<nav id=\"figures\" tabindex=\"-1\" "
         "aria-label=\"figures\"><ol>";
  for (const Figure& figure : figures)
    out << "<li><a href=\"#" << figure.id << "\">" << escaped(figure.title) << "</a>"
        << (figure.paper.empty() ? ""
                                 : " <span class=\"paper\">" + escaped(figure.paper) + "</span>")
        << "</li>";
  out << "</ol></nav>\n<main id=\"main\" tabindex=\"-1\">\n";
  std::size_t pictures = 0;
  for (const Figure& figure : figures) write_figure(out, figure, pictures);
  if (!subject.left_out.empty()) {
    out << "<section id=\"left-out\"><h2>Left out</h2><ul>\n";
    for (const auto& [title, reason] : subject.left_out)
      out << "<li>" << escaped(title) << ": " << escaped(reason) << "</li>\n";
    out << "</ul></section>\n";
  }
  out << "</main></body></html>\n";
  return out.str();
}

}  // namespace openmoe
