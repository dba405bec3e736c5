#include "apps/hf_layout.h"

#include <algorithm>
#include <string_view>

namespace openmoe {
namespace {

struct Renamed {
  std::string_view ours;
  std::string_view split;
};
constexpr Renamed kExperts[] = {{"mlp.experts.wi_gate", "gate_proj.weight"},
                                {"mlp.experts.wi_up", "up_proj.weight"},
                                {"mlp.experts.wo", "down_proj.weight"}};
constexpr Renamed kRouter = {"mlp.gate_weight", "mlp.gate.weight"};

std::vector<std::int64_t> sizes_of(const Shape& shape) {
  return {shape.sizes.begin(), shape.sizes.begin() + shape.rank};
}

void add_split(const Param& param, std::vector<HfTensor>& tensors) {
  const std::string& name = param.name;
  const Shape& shape = param.global_shape;
  if (name.ends_with(kRouter.ours)) {
    const std::string layer = name.substr(0, name.size() - kRouter.ours.size());
    tensors.push_back({layer + std::string(kRouter.split), sizes_of(shape), &param});
    return;
  }
  for (const Renamed& renamed : kExperts) {
    if (!name.ends_with(renamed.ours)) continue;
    const std::string layer = name.substr(0, name.size() - renamed.ours.size());
    for (std::int64_t expert = 0; expert < shape[0]; ++expert)
      tensors.push_back(
          {layer + "mlp.experts." + std::to_string(expert) + "." + std::string(renamed.split),
           {shape[2], shape[1]},
           &param,
           expert});
    return;
  }
  tensors.push_back({name, sizes_of(shape), &param});
}

}  // namespace

std::vector<HfTensor> hf_tensors(const ParamTable& table, HfLayout layout) {
  std::vector<HfTensor> tensors;
  for (const Param& param : table.params()) {
    if (layout == HfLayout::split)
      add_split(param, tensors);
    else
      tensors.push_back({param.name, sizes_of(param.global_shape), &param});
  }
  return tensors;
}

void transpose(float* dst, const float* src, std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kTile = 32;  // two tiles of 4 KiB stay in the first-level cache
#pragma omp parallel for schedule(static)
  for (std::int64_t i0 = 0; i0 < rows; i0 += kTile)
    for (std::int64_t j0 = 0; j0 < columns; j0 += kTile)
      for (std::int64_t i = i0; i < std::min(rows, i0 + kTile); ++i)
        for (std::int64_t j = j0; j < std::min(columns, j0 + kTile); ++j)
          dst[j * rows + i] = src[i * columns + j];
}

}  // namespace openmoe
