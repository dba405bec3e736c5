// Matrix instructions of a warp. Every lane brings its registers and computes its own part of the
// result.
#include "test/cuda_emulation/tensor_core.h"

#include <cstring>

#include "test/cuda_emulation/runtime/launch.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/symbols.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

constexpr std::uint32_t kAllLanes = 0xffffffffu;

float bf16_to_float(std::uint32_t pair, int half) {
  const std::uint32_t bits = (half == 0 ? pair << 16 : pair & 0xffff0000u);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// All lanes' registers, collected in words of 64 bits.
struct Registers {
  std::uint64_t words[3][32];

  std::uint32_t at(int lane, int index) const {
    return static_cast<std::uint32_t>(words[index / 2][lane] >> (32 * (index % 2)));
  }
};

void collect(Registers& all, const std::uint32_t* mine, int count, Site site) {
  for (int word = 0; word < count / 2; ++word) {
    const std::uint64_t bits = mine[2 * word] | static_cast<std::uint64_t>(mine[2 * word + 1])
                                                    << 32;
    const WarpValues values = warp_exchange(kAllLanes, WarpKind::matrix, bits, 8, site);
    if (values.present != kAllLanes) {
      const Unwatched unwatched;
      violation(text("a matrix instruction without all 32 lanes of the warp, at ", site.file, ":",
                     site.line));
    }
    std::memcpy(all.words[word], values.values, sizeof all.words[word]);
  }
}

}  // namespace

// A (16, 16) row-major in registers 0..3, B (16, 8) column-major in registers 4, 5, as
// tensor_core.cuh says.
void tensor_multiply_add(float* d, const unsigned int* a, unsigned int b0, unsigned int b1,
                         Site site) {
  const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  Registers all;
  collect(all, mine, 6, site);
  const int group = lane_index() / 4, pair = lane_index() % 4;
  for (int out = 0; out < 4; ++out) {
    const int row = group + (out >= 2 ? 8 : 0), col = 2 * pair + out % 2;
    float sum = d[out];
    for (int k = 0; k < 16; ++k) {
      const int a_register = (k >= 8 ? 2 : 0) + (row >= 8 ? 1 : 0);
      const float left = bf16_to_float(all.at(row % 8 * 4 + k % 8 / 2, a_register), k % 2);
      const float right = bf16_to_float(all.at(col * 4 + k % 8 / 2, 4 + (k >= 8 ? 1 : 0)), k % 2);
      sum += left * right;
    }
    d[out] = sum;
  }
}

void tensor_load(unsigned int* registers, const void* row, bool transposed, Site site) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  {
    const Unwatched unwatched;
    bool inside = true;
    const bool dynamic = in_dynamic_shared(address, 16, &inside);
    if ((!dynamic && !in_program_image(address)) || !inside)
      violation(text("ldmatrix of ", row, ", which is not shared memory of the block, at ",
                     site.file, ":", site.line));
    if (address % 16 != 0)
      violation(text("ldmatrix of a row that is not aligned to 16 bytes, at ", site.file, ":",
                     site.line));
  }
  std::uint32_t mine[4];
  std::memcpy(mine, row, sizeof mine);
  Registers all;
  collect(all, mine, 4, site);
  const int group = lane_index() / 4, pair = lane_index() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    if (!transposed) {
      registers[matrix] = all.at(8 * matrix + group, pair);
      continue;
    }
    const auto element = [&](int r) {
      return all.at(8 * matrix + r, group / 2) >> (16 * (group % 2)) & 0xffffu;
    };
    registers[matrix] = element(2 * pair) | element(2 * pair + 1) << 16;
  }
}

}  // namespace cuda_emulation
