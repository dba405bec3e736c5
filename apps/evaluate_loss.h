// Held-out loss of a checkpoint, source by source.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/device.h"

namespace openmoe {

struct LossOptions {
  std::string folder;                // run or checkpoint
  std::string data_folder;           // shards
  std::vector<std::string> sources;  // folders below it; empty: all
  std::string objective = "causal_lm";
  std::string packing = "packed";
  std::int64_t num_rows = 32;  // of each source
  std::int64_t ep = 1, tp = 1;
  DeviceOptions device;
};

// One object per source that has held-out documents: source, loss (nats per loss token),
// perplexity, bits_per_byte (of the loss tokens' text), accuracy (share of loss tokens whose most
// likely token is right), loss_tokens, bytes. The same rows on every grid, with the recipe's
// capacity of evaluation. Collective; throws UserError on every rank.
nlohmann::ordered_json evaluate_loss(const LossOptions& options, CommandContext& context);

}  // namespace openmoe
