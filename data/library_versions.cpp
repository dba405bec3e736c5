#include "data/library_versions.h"

#include <hdf5.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

#include "core/base/check.h"

namespace openmoe {

std::vector<std::pair<std::string, std::string>> data_library_versions() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  const unsigned hash = XXH_versionNumber();
  return {{"HDF5", concat(major, ".", minor, ".", release)},
          {"SentencePiece", OPENMOE_SENTENCEPIECE_VERSION},
          {"xxHash", concat(hash / 10000, ".", hash / 100 % 100, ".", hash % 100)},
          {"zstd", ZSTD_versionString()},
          {"zlib", zlibVersion()}};
}

}  // namespace openmoe
