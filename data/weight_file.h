// WeightFile: a file of named tensors that another program wrote, read piece by piece as f32:
// safetensors (safetensors.h) or a PyTorch state dict (torch_file.h). Such files come from
// anywhere: opening one checks all of it that can be wrong before a byte of a tensor is used, and
// executes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace openmoe {

// Number types that become parameters. Files may hold others (`other`), which can be listed but not
// read.
enum class WeightType : std::uint8_t { f32, f16, bf16, other };

const char* name_of(WeightType type);
std::int64_t size_of(WeightType type);  // bytes; `other` is a programmer error

// Elements in a file, of `type`, to f32 and back. Exact from file to f32. Back: round to nearest,
// ties to even; encode_weights returns the number of finite values that became infinite (f16 ends
// at 65504).
void decode_weights(WeightType type, const void* src, float* dst, std::int64_t count);
std::int64_t encode_weights(WeightType type, const float* src, void* dst, std::int64_t count);

struct WeightInfo {
  std::string name;
  WeightType type = WeightType::f32;
  std::string type_name;  // as the file spells it
  std::vector<std::int64_t> shape;

  std::int64_t num_elements() const;
  // The tensor as a matrix: all axes but the last, and the last. A scalar is (1, 1).
  std::int64_t num_columns() const { return shape.empty() ? 1 : shape.back(); }
  std::int64_t num_rows() const;
};

class WeightFile {
 public:
  virtual ~WeightFile() = default;

  virtual const std::string& path() const = 0;
  virtual const std::vector<WeightInfo>& weights() const = 0;
  // Rows [begin, begin + rows) of weights()[index] as a matrix, into dst. Throws UserError where
  // its number type is `other` or the file is damaged.
  virtual void read_rows(std::size_t index, std::int64_t begin, std::int64_t rows, float* dst) = 0;
};

// By content: a zip archive is a PyTorch state dict, all else must be safetensors. Throws UserError
// naming file and tensor.
std::unique_ptr<WeightFile> open_weight_file(const std::string& path);

// A name from a file, fit for a message: control characters escaped, cut when very long, in quotes.
std::string in_quotes(const std::string& name);
// "(2, 3)"
std::string shape_to_string(const std::vector<std::int64_t>& shape);
// The number of elements; false when it does not fit 63 bits or a size is negative.
bool count_elements(const std::vector<std::int64_t>& shape, std::int64_t& count);

}  // namespace openmoe
