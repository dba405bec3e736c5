// Names and shapes of our parameters in the Hugging Face layout of OpenMoE. Ours are those of the
// original port, so that layout ("stacked") needs no change at all. The other one that is in use
// ("split") keeps each expert as three linear weights (out, in) of its own:
// model.layers.I.mlp.experts.E.{gate,up,down}_proj.weight, and the router as mlp.gate.weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/param_table.h"
#include "data/weight_file.h"

namespace openmoe {

enum class HfLayout { stacked, split };

struct HfTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  const Param* param = nullptr;
  std::int64_t expert =
      -1;  // split experts: index along axis 0 of the parameter, whose slice is the transpose
};

// Every tensor of a model, in the order of the parameters. `table` (with all experts, ep = 1) must
// outlive the result.
std::vector<HfTensor> hf_tensors(const ParamTable& table, HfLayout layout);

// dst (columns, rows) = src (rows, columns) transposed.
void transpose(float* dst, const float* src, std::int64_t rows, std::int64_t columns);

}  // namespace openmoe
