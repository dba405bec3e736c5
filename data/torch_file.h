// A PyTorch state dict as torch.save writes it since version 1.6: a zip archive with the pickle
// NAME/data.pkl and one uncompressed record NAME/data/KEY per storage. zip.h is included in
// torch_file.cpp only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/weight_file.h"

namespace openmoe {

class TorchFile : public WeightFile {
 public:
  // Reads the list of tensors; see parse_state_dict for what is refused. Every record must be
  // there, uncompressed, and of exactly the size of its storage.
  explicit TorchFile(const std::string& path);
  ~TorchFile() override;

  const std::string& path() const override;
  const std::vector<WeightInfo>& weights() const override;
  void read_rows(std::size_t index, std::int64_t begin, std::int64_t rows, float* dst) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace openmoe
