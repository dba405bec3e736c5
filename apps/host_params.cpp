#include "apps/host_params.h"

#include "core/base/check.h"
#include "parallel/sharded_update.h"

namespace openmoe {

HostParams::HostParams(ParamTable& params, Ops& ops) : params_(params), ops_(ops), mirror_(params) {
  if (!is_mirror()) return;
  for_each_pair([&](const Tensor& device, Tensor& host) {
    OPENMOE_CHECK(device.dtype == DType::f32, "parameters of ", name_of(device.dtype));
    memory_.emplace_back(static_cast<std::size_t>(device.num_elements()));
    host = host_view(memory_.back().data(), device.shape);
  });
}

template <typename Visit>
void HostParams::for_each_pair(Visit&& visit) {
  for (std::size_t i = 0; i < params_.params().size(); ++i) {
    Param& from = params_.params()[i];
    Param& to = mirror_.params()[i];
    for (const auto member : {&Param::value, &Param::stat_row, &Param::stat_col})
      if (from.*member) visit(from.*member, to.*member);
  }
}

void HostParams::download() {
  if (is_mirror())
    for_each_pair([&](const Tensor& device, const Tensor& host) { ops_.copy(host, device); });
}

void HostParams::download_operands() {
  if (!is_mirror()) return;
  operands_.resize(params_.params().size());
  for (std::size_t i = 0; i < operands_.size(); ++i) {
    const Param& from = params_.params()[i];
    if (!from.is_value_divided) continue;
    operands_[i].resize(static_cast<std::size_t>(from.operand.num_elements()));
    const Tensor host = host_view(operands_[i].data(), from.operand.shape);
    ops_.copy(host, from.operand);
    mirror_.params()[i].operand = host;
  }
}

void HostParams::upload(ProcessGrid& grid) {
  if (is_mirror())
    for_each_pair([&](const Tensor& device, const Tensor& host) { ops_.copy(device, host); });
  params_.round_operands(ops_);
  gather_operands(params_, grid);
}

}  // namespace openmoe
