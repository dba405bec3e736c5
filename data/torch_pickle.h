// The pickle inside a PyTorch checkpoint, as torch.save writes it for a state dict: a list of
// tensors. Pickle is a program for a stack machine that can call anything; this reader knows the
// twenty-odd instructions and the few names that such a file needs, builds plain values from them,
// and calls nothing. All else is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/weight_file.h"

namespace openmoe {

// A tensor is a view of a storage: element (i, j, ...) lies at offset + i*strides[0] + j*strides[1]
// + ...
struct PickledTensor {
  WeightInfo weight;
  std::string storage;                // name of its record in the archive
  std::int64_t storage_elements = 0;  // of the whole storage
  std::int64_t element_bytes = 0;
  std::int64_t offset = 0;            // in elements
  std::vector<std::int64_t> strides;  // in elements; one per axis, none negative
};

// The tensors of a dictionary {name: tensor}, in its order. Every element of each lies inside its
// storage. Throws UserError naming `origin`, the byte, and the instruction, name or tensor that is
// refused.
std::vector<PickledTensor> parse_state_dict(std::string_view pickle, const std::string& origin);

}  // namespace openmoe
