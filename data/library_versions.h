// Versions of the libraries that only this folder uses, for `openmoe info` and for the provenance
// of shards.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace openmoe {

// (library, version) pairs.
std::vector<std::pair<std::string, std::string>> data_library_versions();

}  // namespace openmoe
