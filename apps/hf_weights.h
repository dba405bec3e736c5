// The weights of a Hugging Face folder: one file or several with an index, safetensors or PyTorch
// state dicts in; safetensors out. Tensors pass through as f32, some rows at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/safetensors.h"
#include "data/weight_file.h"

namespace openmoe {

class HfWeights {
 public:
  // Opens model.safetensors, model.safetensors.index.json, pytorch_model.bin or
  // pytorch_model.bin.index.json, the first that is there, and every file that an index names.
  // Throws UserError naming file and tensor, also where index and files disagree.
  explicit HfWeights(const std::string& folder);

  // nullptr when there is none of that name.
  const WeightInfo* find(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  // Rows [begin, begin + rows) of the tensor as a matrix (WeightInfo::num_rows), which must be
  // there.
  void read_rows(const std::string& name, std::int64_t begin, std::int64_t rows, float* dst);
  // What messages about the whole call it: the single file, or the index.
  const std::string& origin() const { return origin_; }

 private:
  struct Place {
    std::size_t file;
    std::size_t index;
  };
  void add_file(const std::string& path);
  void add_indexed(const std::string& folder, const std::string& index_path);

  std::string origin_;
  std::vector<std::unique_ptr<WeightFile>> files_;
  std::unordered_map<std::string, Place> places_;
};

// Writes a list of tensors into as many safetensors files as their sizes ask for, and the index
// when there is more than one.
class HfWeightsWriter {
 public:
  // No file is larger than `max_file_bytes` (of tensors) unless a single tensor is.
  HfWeightsWriter(const std::string& folder, const std::vector<WeightInfo>& weights,
                  std::int64_t max_file_bytes);

  // The next elements, all of one tensor, in the order of the constructor.
  void append(const float* values, std::int64_t count);
  // Completes the last file and writes the index. Throws RuntimeFault when something does not reach
  // the disk.
  void close();

  std::int64_t num_files() const { return static_cast<std::int64_t>(files_.size()); }

 private:
  struct File {
    std::string name;
    std::vector<WeightInfo> weights;
    std::int64_t elements = 0;
  };
  std::string file_name(std::size_t index) const;

  std::string folder_;
  std::vector<File> files_;
  std::size_t current_ = 0;
  std::int64_t written_ = 0;  // elements of files_[current_]
  std::unique_ptr<SafetensorsWriter> writer_;
};

}  // namespace openmoe
