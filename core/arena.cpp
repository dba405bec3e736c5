#include "core/arena.h"

#include <cstdio>

#include "core/ops.h"

namespace openmoe {
namespace {

constexpr std::int64_t kAlignment = 64;

}  // namespace

const char* name_of(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::parameters:
      return "parameters";
    case MemoryCategory::gradients:
      return "gradients";
    case MemoryCategory::optimizer:
      return "optimizer";
    case MemoryCategory::activations:
      return "activations";
    case MemoryCategory::exchange:
      return "exchange";
    case MemoryCategory::loss:
      return "loss";
    case MemoryCategory::batch:
      return "batch";
    case MemoryCategory::workspace:
      return "workspace";
    case MemoryCategory::snapshot:
      return "snapshot";
  }
  return "?";
}

Arena::Arena(Ops& ops, std::int64_t capacity_bytes) : ops_(&ops), capacity_bytes_(capacity_bytes) {
  block_ = ops.allocate_bytes(capacity_bytes);
  ops.zero(Tensor{block_, DType::u8, ops.device(), {capacity_bytes}});
}

Arena::~Arena() {
  if (block_ != nullptr) ops_->free_bytes(block_, capacity_bytes_);
}

Tensor Arena::allocate(const std::string& name, MemoryCategory category, DType dtype,
                       const Shape& shape) {
  Tensor tensor{nullptr, dtype, is_dry() ? Device::host : ops_->device(), shape};
  const std::int64_t bytes = (tensor.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (!is_dry()) {
    OPENMOE_CHECK(used_bytes_ + bytes <= capacity_bytes_, name, " ", shape.to_string(),
                  " does not fit: ", used_bytes_, " of ", capacity_bytes_, " bytes are used");
    tensor.data = static_cast<char*>(block_) + used_bytes_;
  }
  used_bytes_ += bytes;
  category_bytes_[static_cast<std::size_t>(category)] += bytes;
  return tensor;
}

std::int64_t Arena::used_bytes(MemoryCategory category) const {
  return category_bytes_[static_cast<std::size_t>(category)];
}

std::string Arena::table() const {
  std::string text;
  char line[96];
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (!shows(category)) continue;
    std::snprintf(line, sizeof line, "  %-12s %12.1f MiB\n", name_of(category),
                  static_cast<double>(used_bytes(category)) / (1 << 20));
    text += line;
  }
  std::snprintf(line, sizeof line, "  %-12s %12.1f MiB\n", "total",
                static_cast<double>(used_bytes_) / (1 << 20));
  return text + line;
}

}  // namespace openmoe
