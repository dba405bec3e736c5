// Things that one rank does for all, with failures that reach every rank alike.
#pragma once

#include <string>

#include "core/base/error.h"
#include "parallel/communicator.h"

namespace openmoe {

// Runs `action` on rank 0 of the group. If it throws a UserError or RuntimeFault there, every rank
// throws the same one, so that no rank is left waiting in a later collective. Collective.
template <typename Action>
void on_root(Communicator& group, Action&& action) {
  std::string verdict = "ok";
  if (group.rank_in_group() == 0) {
    try {
      action();
    } catch (const UserError& error) {
      verdict = std::string("u") + error.what();
    } catch (const RuntimeFault& error) {
      verdict = std::string("f") + error.what();
    }
  }
  group.broadcast(verdict, 0);
  if (verdict[0] == 'u') throw UserError(verdict.substr(1));
  if (verdict[0] == 'f') throw RuntimeFault(verdict.substr(1));
}

// Runs `action` on every rank of the group. If it throws a UserError or RuntimeFault on any, every
// rank throws that of the lowest rank that failed. Collective; `action` itself must not be.
template <typename Action>
void on_every_rank(Communicator& group, Action&& action) {
  std::string verdict = "ok";
  try {
    action();
  } catch (const UserError& error) {
    verdict = std::string("u") + error.what();
  } catch (const RuntimeFault& error) {
    verdict = std::string("f") + error.what();
  }
  for (const std::string& of_rank : group.all_gather(verdict)) {
    if (of_rank[0] == 'u') throw UserError(of_rank.substr(1));
    if (of_rank[0] == 'f') throw RuntimeFault(of_rank.substr(1));
  }
}

}  // namespace openmoe
