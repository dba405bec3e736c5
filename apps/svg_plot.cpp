#include "apps/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "apps/analysis_text.h"
#include "core/base/check.h"

namespace openmoe {

const char* const kPlotStyle = R"(
.plot{--ink:#1c1e21;--soft:#5b6168;--line:#d5d9de;--paper:#ffffff;--heat:#0b5cad;
--c0:#0b5cad;--c1:#b3440b;--c2:#1d7a46;--c3:#7b3fa0;--c4:#8a6d00;--c5:#a31f5b;--c6:#0f7d86;--c7:#555b62;
font:12px system-ui,sans-serif;color:var(--ink)}
@media(prefers-color-scheme:dark){.plot{--ink:#e8eaed;--soft:#a7adb5;--line:#3c4249;--paper:#16181b;--heat:#6cb2ff;
--c0:#6cb2ff;--c1:#ff9a5c;--c2:#5fd08c;--c3:#c79bf0;--c4:#e0c040;--c5:#ff8dbb;--c6:#58d3dd;--c7:#b4bac2}}
.plot text{fill:var(--ink)}
.plot .soft{fill:var(--soft)}
.plot .grid{stroke:var(--line);stroke-width:1}
.plot .axis{stroke:var(--soft);stroke-width:1}
.plot .heat{fill:var(--heat);stroke:var(--line);stroke-width:.5}
.plot .wide{fill:none;stroke-width:2}
.plot .whisker{stroke:var(--ink);stroke-width:1.5}
.plot .title{font-weight:600;font-size:13px}
)";

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '&')
      result += "&amp;";
    else if (c == '"')
      result += "&quot;";
    else if (static_cast<unsigned char>(c) < 0x20)
      result += ' ';
    else
      result += c;
  }
  return result;
}

std::string shortened(const std::string& text, std::size_t most) {
  std::string result;
  std::size_t characters = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80 && ++characters > most)
      return result + "\u2026";
    result += text[i];
  }
  return result;
}

namespace {

constexpr double kTitleCharacter = 8.8;
constexpr double kCharacter = 6.6;  // width of one of the labels' characters, generously
constexpr double kTop = 30;
constexpr int kColours = 8;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

// As axes show it.
std::string tick_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

double text_width(const std::vector<std::string>& texts) {
  std::size_t longest = 1;
  for (const std::string& text : texts)
    longest = std::max<std::size_t>(
        longest, static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
          return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
        })));
  return kCharacter * static_cast<double>(std::min<std::size_t>(longest, 28));
}

class Drawing {
 public:
  void text(double x, double y, const std::string& words, const char* anchor = "start",
            const char* css = "", const std::string& more = "") {
    out_ << "<text x=\"" << number(x) << "\" y=\"" << number(y) << "\" text-anchor=\"" << anchor
         << "\"" << (*css != '\0' ? std::string(" class=\"") + css + "\"" : "") << more << ">"
         << escaped(words) << "</text>";
  }
  void line(double x1, double y1, double x2, double y2, const char* css) {
    out_ << "<line x1=\"" << number(x1) << "\" y1=\"" << number(y1) << "\" x2=\"" << number(x2)
         << "\" y2=\"" << number(y2) << "\" class=\"" << css << "\"/>";
  }
  // A mark with a text that appears under the pointer.
  void rect(double x, double y, double width, double height, const std::string& attributes,
            const std::string& hint) {
    out_ << "<rect x=\"" << number(x) << "\" y=\"" << number(y) << "\" width=\"" << number(width)
         << "\" height=\"" << number(height) << "\" " << attributes << "><title>" << escaped(hint)
         << "</title></rect>";
  }
  void raw(const std::string& element) { out_ << element; }

  // As wide as `content`, or as the title where that is wider.
  std::string finish(const Plot& plot, const std::string& id, double content, double height) const {
    const double width =
        std::max(content, kTitleCharacter * static_cast<double>(plot.title.size()) + 12);
    std::ostringstream svg;
    svg << "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 "
        << number(width) << " " << number(height) << "\" width=\"" << number(width)
        << "\" role=\"img\" aria-labelledby=\"" << id << "\"><title id=\"" << id << "\">"
        << escaped(plot.title) << "</title>" << out_.str() << "</svg>";
    return svg.str();
  }

 private:
  std::ostringstream out_;
};

std::string draw(const Plot& plot, const Heatmap& map, const std::string& id) {
  constexpr double kHigh = 20;
  const auto columns = static_cast<double>(map.columns.size());
  const double wide = std::clamp(560.0 / std::max(1.0, columns), 16.0, 40.0);
  const double left = text_width(map.rows) + 24;
  double largest = 1e-12;
  for (const auto& row : map.values)
    for (const double value : row) largest = std::max(largest, value);
  Drawing out;
  out.text(4, 16, plot.title, "start", "title");
  for (std::size_t c = 0; c < map.columns.size(); ++c)
    out.text(left + (static_cast<double>(c) + 0.5) * wide, kTop + 12, map.columns[c], "middle",
             "soft");
  const double top = kTop + 18;
  for (std::size_t r = 0; r < map.rows.size(); ++r) {
    const double y = top + static_cast<double>(r) * kHigh;
    out.text(left - 6, y + 14, shortened(map.rows[r], 28), "end");
    for (std::size_t c = 0; c < map.values[r].size(); ++c) {
      const double value = map.values[r][c];
      if (std::isnan(value)) continue;
      out.rect(left + static_cast<double>(c) * wide, y, wide, kHigh,
               "class=\"heat\" fill-opacity=\"" + number(value / largest) + "\"",
               map.rows[r] + ", " + plot.x_label + " " + map.columns[c] + ": " + percent(value));
    }
  }
  const double bottom = top + static_cast<double>(map.rows.size()) * kHigh;
  out.text(left, bottom + 16, plot.x_label + "; white or black 0, full colour " + percent(largest),
           "start", "soft");
  return out.finish(plot, id, std::max(left + columns * wide + 10, left + 330), bottom + 24);
}

// 1, 2 or 5 times a power of ten, about a fifth of the range.
double tick_step(double range) {
  const double rough = range / 5;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (rough <= factor * power) return factor * power;
  return 10 * power;
}

struct Frame {
  double left, top, width, height, x_low, x_high, y_low, y_high;
  bool log_x = false;

  // Steps 0, 1, 2, 4, ... are evenly apart.
  double place(double x) const { return log_x ? std::log2(1.0 + x) : x; }
  double x(double value) const {
    const double low = place(x_low), high = place(x_high);
    return left + width * (high > low ? (place(value) - low) / (high - low) : 0.5);
  }
  double y(double value) const { return top + height * (1.0 - (value - y_low) / (y_high - y_low)); }
};

void draw_y_axis(Drawing& out, const Plot& plot, const Frame& frame) {
  const double step = tick_step(frame.y_high - frame.y_low);
  for (double value = std::ceil(frame.y_low / step) * step; value <= frame.y_high + step * 1e-9;
       value += step) {
    const double y = frame.y(value);
    out.line(frame.left, y, frame.left + frame.width, y, "grid");
    out.text(frame.left - 6, y + 4, tick_text(std::abs(value) < step * 1e-9 ? 0.0 : value), "end",
             "soft");
  }
  out.text(frame.left, frame.top - 6, plot.y_label, "start", "soft");
}

// Names below each other at the right of the frame, with a mark of colour and form each.
void draw_legend(Drawing& out, const std::vector<std::string>& names, const Frame& frame) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    const double y = frame.top + 10 + 18 * static_cast<double>(i);
    const double x = frame.left + frame.width + 14;
    out.rect(x, y - 9, 10, 10, "style=\"fill:var(--c" + std::to_string(i % kColours) + ")\"",
             names[i]);
    out.text(x + 16, y, shortened(names[i], 28));
  }
}

std::string dashes(std::size_t i) {
  const char* const kinds[] = {"", "7 3", "2 3", "9 3 2 3"};
  return kinds[i % 4];
}

void draw_x_ticks(Drawing& out, const LinePlot& lines, const Frame& frame) {
  const double bottom = frame.top + frame.height;
  std::vector<double> ticks;
  if (lines.log_x) {
    for (const Series& series : lines.series)
      ticks.insert(ticks.end(), series.x.begin(), series.x.end());
    std::sort(ticks.begin(), ticks.end());
  } else {
    const double step = tick_step(std::max(1e-9, frame.x_high - frame.x_low));
    for (double x = std::ceil(frame.x_low / step) * step; x <= frame.x_high + step * 1e-9;
         x += step)
      ticks.push_back(x);
  }
  double last = -1e9;
  for (const double value : ticks) {
    const double x = frame.x(value);
    const std::string text = tick_text(value);
    if (x - last < kCharacter * static_cast<double>(text.size()) + 8) continue;
    out.line(x, bottom, x, bottom + 4, "axis");
    out.text(x, bottom + 17, text, "middle", "soft");
    last = x;
  }
}

std::string draw(const Plot& plot, const LinePlot& lines, const std::string& id) {
  Frame frame{56, kTop + 26, 460, 220, 1e300, -1e300, lines.from_zero ? 0.0 : 1e300, -1e300};
  frame.log_x = lines.log_x;
  std::vector<std::string> names;
  for (const Series& series : lines.series) {
    names.push_back(series.name);
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      frame.x_low = std::min(frame.x_low, series.x[i]);
      frame.x_high = std::max(frame.x_high, series.x[i]);
      frame.y_low = std::min(frame.y_low, series.y[i]);
      frame.y_high = std::max(frame.y_high, series.y[i]);
    }
  }
  if (frame.x_low > frame.x_high) frame.x_low = frame.x_high = 0.0;
  if (frame.y_high <= frame.y_low) frame.y_high = frame.y_low + 1.0;
  frame.y_high += 0.04 * (frame.y_high - frame.y_low);
  Drawing out;
  out.text(4, 16, plot.title, "start", "title");
  draw_y_axis(out, plot, frame);
  draw_x_ticks(out, lines, frame);
  const double bottom = frame.top + frame.height;
  out.line(frame.left, bottom, frame.left + frame.width, bottom, "axis");
  out.text(frame.left + frame.width / 2, bottom + 34, plot.x_label, "middle", "soft");
  for (std::size_t s = 0; s < lines.series.size(); ++s) {
    const Series& series = lines.series[s];
    const std::string colour = "var(--c" + std::to_string(s % kColours) + ")";
    std::string points;
    for (std::size_t i = 0; i < series.x.size(); ++i)
      points += concat(number(frame.x(series.x[i])), ",", number(frame.y(series.y[i])), " ");
    out.raw(concat("<polyline class=\"wide\" style=\"stroke:", colour, "\" stroke-dasharray=\"",
                   dashes(s), "\" points=\"", points, "\"><title>", escaped(series.name),
                   "</title></polyline>"));
    if (series.x.size() > 40) continue;
    for (std::size_t i = 0; i < series.x.size(); ++i)
      out.raw(concat("<circle r=\"3\" cx=\"", number(frame.x(series.x[i])), "\" cy=\"",
                     number(frame.y(series.y[i])), "\" style=\"fill:", colour, "\"><title>",
                     escaped(series.name), ", ", escaped(plot.x_label), " ", tick_text(series.x[i]),
                     ": ", tick_text(series.y[i]), "</title></circle>"));
  }
  draw_legend(out, names, frame);
  const double right = frame.left + frame.width + 40 + text_width(names);
  const double low_legend = frame.top + 18 * static_cast<double>(names.size()) + 10;
  return out.finish(plot, id, right, std::max(bottom + 44, low_legend));
}

std::string draw(const Plot& plot, const BarPlot& bars, const std::string& id) {
  const auto groups = static_cast<double>(bars.groups.size());
  const auto series = static_cast<double>(bars.series.size());
  const double bar = std::clamp(440.0 / std::max(1.0, groups * (series + 1)), 6.0, 34.0);
  const double group_width = bar * (series + 1);
  const double name_width = text_width(bars.groups);
  const bool slanted = name_width > group_width;
  Frame frame{56, kTop + 26, std::max(300.0, groups * group_width + bar), 200, 0, 1, 0, -1e300};
  for (const auto& row : bars.values)
    for (const double value : row) frame.y_high = std::max(frame.y_high, value);
  for (const auto& row : bars.high)
    for (const double value : row) frame.y_high = std::max(frame.y_high, value);
  if (frame.y_high <= 0.0) frame.y_high = 1.0;
  frame.y_high *= 1.05;
  Drawing out;
  out.text(4, 16, plot.title, "start", "title");
  draw_y_axis(out, plot, frame);
  const double bottom = frame.top + frame.height;
  for (std::size_t g = 0; g < bars.groups.size(); ++g) {
    const double begin = frame.left + bar + static_cast<double>(g) * group_width;
    for (std::size_t s = 0; s < bars.values[g].size(); ++s) {
      const double value = bars.values[g][s], x = begin + static_cast<double>(s) * bar;
      if (std::isnan(value)) continue;
      const bool has_interval = !bars.low.empty() && bars.high[g][s] > bars.low[g][s];
      std::string hint = bars.groups[g] + ", " + bars.series[s] + ": " + tick_text(value);
      if (has_interval)
        hint += " (" + tick_text(bars.low[g][s]) + " to " + tick_text(bars.high[g][s]) + ")";
      out.rect(x, frame.y(value), bar - 1, bottom - frame.y(value),
               "style=\"fill:var(--c" + std::to_string(s % kColours) + ")\"", hint);
      if (has_interval)
        out.line(x + bar / 2, frame.y(bars.low[g][s]), x + bar / 2, frame.y(bars.high[g][s]),
                 "whisker");
    }
    const double x = begin + (group_width - bar) / 2;
    const std::string turn =
        slanted ? " transform=\"rotate(-40 " + number(x) + " " + number(bottom + 14) + ")\"" : "";
    out.text(x, bottom + 16, shortened(bars.groups[g], 28), slanted ? "end" : "middle", "", turn);
  }
  out.line(frame.left, bottom, frame.left + frame.width, bottom, "axis");
  draw_legend(out, bars.series, frame);
  const double right = frame.left + frame.width + 40 + text_width(bars.series);
  const double below = slanted ? 22 + 0.66 * name_width : 26;
  const double low_legend = frame.top + 18 * series + 10;
  return out.finish(plot, id, right, std::max(bottom + below, low_legend));
}

}  // namespace

std::string svg_of(const Plot& plot, const std::string& id) {
  return std::visit([&](const auto& shape) { return draw(plot, shape, id); }, plot.shape);
}

std::string svg_file(const Plot& plot) {
  std::string svg = svg_of(plot, "title");
  // A background, since viewers of single files have none of their own.
  const std::size_t inside = svg.find('>') + 1;
  svg.insert(inside, std::string("<style>") + kPlotStyle +
                         "</style><rect width=\"100%\" height=\"100%\" "
                         "style=\"fill:var(--paper)\"/>");
  return svg + "\n";
}

}  // namespace openmoe
