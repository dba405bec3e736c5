// Plots as SVG, with titles for screen readers. Colours are classes of kPlotStyle, which an HTML
// page has once and a file of its own carries, so that light and dark are the reader's choice.
#pragma once

#include <cstddef>
#include <string>

#include "apps/figure.h"

namespace openmoe {

// Rules of CSS, without <style>.
extern const char* const kPlotStyle;

// The <svg> element, for a page that has kPlotStyle. `id` is unique in the page.
std::string svg_of(const Plot& plot, const std::string& id);
// A whole file.
std::string svg_file(const Plot& plot);

// Text as it must stand in HTML and SVG.
std::string escaped(const std::string& text);
// The first `most` characters of UTF-8 text, with an ellipsis if there are more.
std::string shortened(const std::string& text, std::size_t most);

}  // namespace openmoe
