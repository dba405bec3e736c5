// libFuzzer target: the whole input is a weight file, read as `openmoe convert` reads it. Built by
// run.sh.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "data/weight_file.h"

namespace {

// A file in memory with a name.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(memfd_create("input", 0)) {
    if (descriptor_ < 0 || write(descriptor_, data, size) != static_cast<ssize_t>(size))
      std::abort();
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

void read(openmoe::WeightFile& file) {
  // Views may repeat elements, so a small file can describe tensors of any size; the reader works
  // row by row.
  constexpr std::int64_t kLargest = 1 << 16;
  for (std::size_t i = 0; i < file.weights().size(); ++i) {
    const openmoe::WeightInfo& weight = file.weights()[i];
    if (weight.num_elements() > kLargest) continue;
    std::vector<float> values(static_cast<std::size_t>(weight.num_elements()));
    const std::int64_t half = weight.num_rows() / 2;
    file.read_rows(i, half, weight.num_rows() - half, values.data() + half * weight.num_columns());
    file.read_rows(i, 0, half, values.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const MemoryFile input(data, size);
  try {
    read(*openmoe::open_weight_file(input.path()));
  } catch (const openmoe::UserError&) {
  }
  return 0;
}
