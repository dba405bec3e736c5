// Arena: owns the memory of one device and hands out named tensors by category. All bytes of a run
// are known before step 0: the function that allocates is run twice, once dry (which only counts;
// `plan` prints that) and once for real.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace openmoe {

class Ops;

enum class MemoryCategory {
  parameters,
  gradients,
  optimizer,
  activations,
  exchange,
  loss,
  batch,
  workspace,  // Ops::workspace_bytes
  snapshot    // of what a checkpoint holds
};
inline constexpr int kNumMemoryCategories = 9;
const char* name_of(MemoryCategory category);

class Arena {
 public:
  // Dry: tensors have shapes and null pointers. Nothing is allocated.
  Arena() = default;
  // Real: one block of `capacity_bytes` from `ops`, freed at destruction. Throws RuntimeFault when
  // it cannot be had.
  Arena(Ops& ops, std::int64_t capacity_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // The next tensor, 64-byte aligned, zero-filled at construction of the arena. Exceeding the
  // capacity is a programmer error (the dry run of the same function gave the capacity).
  Tensor allocate(const std::string& name, MemoryCategory category, DType dtype,
                  const Shape& shape);

  bool is_dry() const { return ops_ == nullptr; }
  std::int64_t used_bytes() const { return used_bytes_; }
  std::int64_t used_bytes(MemoryCategory category) const;
  // Whether the category has a line in tables of memory.
  bool shows(MemoryCategory category) const {
    const bool is_special =
        category == MemoryCategory::snapshot || category == MemoryCategory::workspace;
    return !is_special || used_bytes(category) > 0;
  }
  // One line per category and the total, for the start-up log.
  std::string table() const;

 private:
  Ops* ops_ = nullptr;
  void* block_ = nullptr;
  std::int64_t capacity_bytes_ = 0;
  std::int64_t used_bytes_ = 0;
  std::array<std::int64_t, kNumMemoryCategories> category_bytes_{};
};

}  // namespace openmoe
