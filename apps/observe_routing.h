// A checkpoint's routing of a text, recorded token by token.
#pragma once

#include <string>

#include "apps/command.h"
#include "apps/device.h"
#include "core/config/recipe.h"
#include "core/routing/trace.h"
#include "data/study_text.h"
#include "data/tokenizer.h"

namespace openmoe {

struct ObserveOptions {
  std::int64_t ep = 1;
  bool dropless = false;     // else the capacity of evaluation in the checkpoint's recipe
  std::string compute_type;  // f32 or bf16; "": as the recipe says
  DeviceOptions device;
};

// Loss of one source's targets, nats per token.
struct SourceLoss {
  std::string source;
  double loss = 0.0;
  std::int64_t tokens = 0;
};

struct ObservedRouting {
  RoutingTrace trace;  // on rank 0; elsewhere without layers
  std::vector<SourceLoss> losses;
  RoutingConfig routing;  // of the checkpoint's recipe
};

// One pass over the text. The same numbers on every grid: whole numbers are gathered, in the order
// of the rows. Collective; throws UserError on every rank.
ObservedRouting observe_routing(const std::string& checkpoint, const StudyText& text,
                                const ObserveOptions& options, CommandContext& context);

}  // namespace openmoe
