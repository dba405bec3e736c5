#include "core/infer/packed_matrix.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/cpu/huge_pages.h"

namespace openmoe::infer {

Block::Block(std::int64_t bytes)
    : data_(bytes == 0 ? nullptr : cpu::map_huge_pages(bytes)), bytes_(bytes) {}

Block::Block(Block&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Block::~Block() {
  if (data_ != nullptr) cpu::unmap_huge_pages(data_, bytes_);
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

void PackedMatrix::set_transposed(std::int64_t begin, std::int64_t rows, const float* values,
                                  std::int64_t ld) {
  OPENMOE_CHECK(0 <= begin && begin + rows <= out_ && rows <= ld, "rows [", begin, ", ",
                begin + rows, ") of ", out_, ", ", ld, " apart");
#pragma omp parallel for schedule(static)
  for (std::int64_t first = 0; first < rows; first += kPanelRows)
    for (std::int64_t column = 0; column < in_; ++column)
      for (std::int64_t row = first; row < std::min(rows, first + kPanelRows); ++row)
        set(begin + row, column, values[column * ld + row]);
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
