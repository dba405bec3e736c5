// Safetensors files, read and written. The format: the length of the header as 8 bytes (little
// endian), the header as JSON
// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__":
// {"key": "text"}}, then the tensors' bytes, little endian and row-major, side by side without
// holes. (huggingface/safetensors, "Format".)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/input_file.h"
#include "data/output_file.h"
#include "data/weight_file.h"

namespace openmoe {

struct SafetensorsEntry {
  WeightInfo weight;
  std::int64_t begin = 0, end = 0;  // bytes after the header
};

// The header of a file whose tensors take `data_bytes`, in the order of the bytes. Throws one
// UserError naming `origin` and the tensor on: no JSON of this form, repeated or unknown keys, an
// unknown dtype, sizes whose product does not fit 63 bits, offsets that do not hold the shape,
// overlap, leave holes or leave the file.
std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header,
                                                       std::int64_t data_bytes,
                                                       const std::string& origin);

class SafetensorsFile : public WeightFile {
 public:
  explicit SafetensorsFile(InputFile file);

  const std::string& path() const override { return file_.path(); }
  const std::vector<WeightInfo>& weights() const override { return weights_; }
  void read_rows(std::size_t index, std::int64_t begin, std::int64_t rows, float* dst) override;

 private:
  InputFile file_;
  std::vector<WeightInfo> weights_;
  std::vector<std::int64_t> offsets_;  // in the file, of each weight
  std::vector<char> buffer_;
};

// Writes weights of f32, f16 or bf16 one after the other.
class SafetensorsWriter {
 public:
  using Metadata = std::vector<std::pair<std::string, std::string>>;

  // Creates the file and writes its header.
  SafetensorsWriter(const std::string& path, std::vector<WeightInfo> weights,
                    const Metadata& metadata);

  // The next `count` elements, all of one weight, in the order of the constructor. Throws UserError
  // when a finite value is too large for the weight's type.
  void append(const float* values, std::int64_t count);
  // Throws RuntimeFault when the file does not reach the disk. Every element must have been
  // written.
  void close();

 private:
  OutputFile file_;
  std::vector<WeightInfo> weights_;
  std::size_t current_ = 0;
  std::int64_t written_ = 0;  // elements of weights_[current_]
  std::vector<char> buffer_;
};

}  // namespace openmoe
