// The JSON Lines form of routing logs, and what both forms share; see routing_log.h.
#pragma once

#include <string>

#include "data/routing_log.h"

namespace openmoe {

// As read_routing_log; the caller checks the trace as a whole.
RoutingLog read_routing_json(const std::string& path);

// Makes every sequence a document of its source.
void documents_of_sequences(RoutingTrace& trace);

// Throws UserError. Not `whole`: only what the sizes of the other parts follow from.
void check_routing_log(const RoutingLog& log, const std::string& path, bool whole);

}  // namespace openmoe
