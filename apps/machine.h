// Machine: what `plan` must know of computers to turn arithmetic and bytes into seconds. One JSON
// file (recipes/machines), or measured here (machine_measure.h).
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "core/config/recipe.h"

namespace openmoe {

// A speed by the data sheet and the share of it that a program reaches.
struct Speed {
  double peak = 0.0;      // FLOP/s, or bytes/s
  double fraction = 1.0;  // (0, 1]

  double reached() const { return peak * fraction; }
};

struct Link {
  double bandwidth = 0.0;  // bytes/s of one rank in one direction, all ranks at once
  double fraction = 1.0;   // (0, 1]
  double latency = 0.0;    // seconds of one message

  double reached() const { return bandwidth * fraction; }
};

struct Machine {
  std::string name;
  std::string description;       // with the sources of the numbers
  Speed f32, bf16;               // products of one rank
  Speed memory;                  // bytes/s of one rank
  double memory_bytes = 0.0;     // of one rank
  double memory_fraction = 1.0;  // of it that a job may plan with
  std::int64_t ranks_per_node = 1;
  Link intra_node, inter_node;

  double peak_of(ComputeType type) const {
    return type == ComputeType::bf16 ? bf16.peak : f32.peak;
  }
  double usable_bytes() const { return memory_bytes * memory_fraction; }
};

// Strict: unknown, repeated, missing and mistyped keys and values out of range are one UserError.
Machine load_machine(const std::string& path);
Machine parse_machine(const std::string& text, const std::string& origin);
// With every key, as load_machine reads it.
std::string to_json(const Machine& machine);

}  // namespace openmoe
