// Things that one rank does for all, with failures that reach every rank alike.
#pragma once

#include <exception>
#include <string>

#include "core/base/error.h"
#include "parallel/communicator.h"

namespace openmoe {

namespace detail {

// What an action ended with, in a form that travels between ranks: its first letter is the kind.
template <typename Action>
std::string verdict_of(Action&& action) {
  try {
    action();
  } catch (const UserError& error) {
    return std::string("u") + error.what();
  } catch (const RuntimeFault& error) {
    return std::string("f") + error.what();
  } catch (const std::exception& error) {  // out of memory, or a defect; it must not leave ranks
    return std::string("f") + error.what();
  }
  return "ok";
}

inline void throw_verdict(const std::string& verdict) {
  if (verdict[0] == 'u') throw UserError(verdict.substr(1));
  if (verdict[0] == 'f') throw RuntimeFault(verdict.substr(1));
}

}  // namespace detail

// Runs `action` on rank 0 of the group. If it throws there, every rank throws the same UserError,
// or a RuntimeFault for any other exception, so that no rank is left waiting in a later collective.
// Collective.
template <typename Action>
void on_root(Communicator& group, Action&& action) {
  std::string verdict = group.rank_in_group() == 0 ? detail::verdict_of(action) : "";
  group.broadcast(verdict, 0);
  detail::throw_verdict(verdict);
}

// Runs `action` on every rank of the group. If it throws on any, every rank throws that of the
// lowest rank that failed, as above. Collective; `action` itself must not be.
template <typename Action>
void on_every_rank(Communicator& group, Action&& action) {
  for (const std::string& verdict : group.all_gather(detail::verdict_of(action)))
    detail::throw_verdict(verdict);
}

}  // namespace openmoe
