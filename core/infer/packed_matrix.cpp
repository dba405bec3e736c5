#include "core/infer/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>

#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::infer {
namespace {

constexpr std::int64_t kHugePage = 2 << 20;

std::int64_t mapped_bytes(std::int64_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

Block::Block(std::int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  // One huge page more than needed, so that the start can be moved to a boundary of one.
  const auto size = static_cast<std::size_t>(mapped_bytes(bytes) + kHugePage);
  void* const map = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED)
    throw RuntimeFault(concat("out of memory: ", bytes, " bytes of weights or activations"));
  constexpr auto kPage = static_cast<std::size_t>(kHugePage);
  const std::size_t lead = (kPage - reinterpret_cast<std::uintptr_t>(map) % kPage) % kPage;
  const std::size_t tail = kPage - lead;
  auto* const begin = static_cast<char*>(map) + lead;
  if (lead > 0) munmap(map, lead);
  munmap(begin + mapped_bytes(bytes), tail);
  data_ = begin;
  // Small blocks would only waste what rounding up to a huge page adds.
  if (bytes >= kHugePage)
    madvise(data_, static_cast<std::size_t>(mapped_bytes(bytes)), MADV_HUGEPAGE);
}

Block::Block(Block&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Block::~Block() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(mapped_bytes(bytes_)));
}

PackedMatrix::PackedMatrix(std::int64_t out, std::int64_t in, DType dtype)
    : out_(out), in_(in), dtype_(dtype), block_(num_panels() * panel_bytes()) {
  OPENMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of ", name_of(dtype));
}

void PackedMatrix::set(std::int64_t row, std::int64_t column, float value) {
  if (dtype_ == DType::f32)
    block_.as<float>()[offset(row, column)] = value;
  else
    block_.as<BFloat16>()[offset(row, column)] = BFloat16(value);
}

void PackedMatrix::set_rows(std::int64_t begin, std::int64_t rows, const float* values) {
  OPENMOE_CHECK(0 <= begin && begin + rows <= out_, "rows [", begin, ", ", begin + rows, ") of ",
                out_);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t column = 0; column < in_; ++column)
      set(begin + row, column, values[row * in_ + column]);
}

void PackedMatrix::set_transposed(const float* values) {
#pragma omp parallel for schedule(static)
  for (std::int64_t panel = 0; panel < num_panels(); ++panel)
    for (std::int64_t column = 0; column < in_; ++column)
      for (std::int64_t row = panel * kPanelRows; row < std::min(out_, (panel + 1) * kPanelRows);
           ++row)
        set(row, column, values[column * out_ + row]);
}

void PackedMatrix::get_row(std::int64_t index, float* values) const {
  OPENMOE_CHECK(0 <= index && index < out_, "row ", index, " of ", out_);
  for (std::int64_t column = 0; column < in_; ++column) {
    const std::int64_t at = offset(index, column);
    values[column] = dtype_ == DType::f32 ? block_.as<float>()[at]
                                          : static_cast<float>(block_.as<BFloat16>()[at]);
  }
}

}  // namespace openmoe::infer
