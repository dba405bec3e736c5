#include "apps/replica_check.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/hash.h"
#include "parallel/stuck_ranks.h"

namespace openmoe {
namespace {

std::int64_t hash_of(const Tensor& values) {
  OPENMOE_CHECK(values.device == Device::host, "values to compare are on a device");
  return static_cast<std::int64_t>(xxh3_64(
      values.data, static_cast<std::size_t>(values.num_elements() * size_of(values.dtype))));
}

// Whether the ranks of the group have different hashes, by parameter: the largest hash and the
// largest complement, which is the complement of the smallest, tell.
std::vector<bool> find_differences(const std::vector<std::int64_t>& hashes, Communicator& group) {
  std::vector<std::int64_t> extremes = hashes;
  for (const std::int64_t hash : hashes) extremes.push_back(~hash);
  group.all_reduce_max(std::span<std::int64_t>(extremes));
  std::vector<bool> differ(hashes.size());
  for (std::size_t i = 0; i < hashes.size(); ++i)
    differ[i] = extremes[i] != ~extremes[hashes.size() + i];
  return differ;
}

// "rank 3 differs from ranks 0, 1, 2"; without a majority "rank 0 and rank 2 differ". `ranks` by
// the bits they hold.
std::string describe(const std::map<std::string, std::vector<int>>& ranks) {
  std::vector<std::vector<int>> camps;
  for (const auto& [hash, of_hash] : ranks) camps.push_back(of_hash);
  std::sort(camps.begin(), camps.end(), [](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  const bool has_majority = camps[camps.size() - 2].size() < camps.back().size();
  std::string text;
  for (std::size_t i = 0; i + 1 < camps.size(); ++i)
    text += (i > 0 ? ", " : "") + list_ranks(camps[i]);
  if (!has_majority) return concat(text, " and ", list_ranks(camps.back()), " differ");
  const bool is_one = camps.size() == 2 && camps[0].size() == 1;
  return concat(text, is_one ? " differs" : " differ", " from ", list_ranks(camps.back()));
}

}  // namespace

std::string compare_replicas(const ParamTable& params, ProcessGrid& grid, std::int64_t steps_done) {
  const std::vector<Param>& table = params.params();
  std::vector<std::int64_t> hashes;
  for (const Param& param : table)
    hashes.push_back(hash_of(param.is_value_divided ? param.operand : param.value));
  std::vector<std::int64_t> differs(table.size());
  for (const Sharding sharding : kShardings) {
    std::vector<std::size_t> places;
    std::vector<std::int64_t> of_kind;
    for (std::size_t i = 0; i < table.size(); ++i)
      if (table[i].sharding == sharding) {
        places.push_back(i);
        of_kind.push_back(hashes[i]);
      }
    if (places.empty()) continue;
    const std::vector<bool> found = find_differences(of_kind, grid.holders(sharding));
    for (std::size_t i = 0; i < places.size(); ++i) differs[places[i]] = found[i] ? 1 : 0;
  }
  grid.world().all_reduce_max(std::span<std::int64_t>(differs));
  const auto first = std::find(differs.begin(), differs.end(), 1);
  if (first == differs.end()) return "";

  const auto place = static_cast<std::size_t>(first - differs.begin());
  const Param& param = table[place];
  // Ranks that should be equal say the same before the hash.
  const std::string should_equal = concat(param.sharding == Sharding::expert ? grid.ep_rank() : 0,
                                          ' ', param.tensor_slice.axis >= 0 ? grid.tp_rank() : 0);
  const std::vector<std::string> all =
      grid.world().all_gather(concat(should_equal, '\n', hashes[place]));
  std::map<std::string, std::map<std::string, std::vector<int>>> ranks;
  for (std::size_t r = 0; r < all.size(); ++r) {
    const std::size_t end = all[r].find('\n');
    ranks[all[r].substr(0, end)][all[r].substr(end + 1)].push_back(static_cast<int>(r));
  }
  std::string text;
  for (const auto& [name, by_hash] : ranks)
    if (by_hash.size() > 1) text += (text.empty() ? "" : "; ") + describe(by_hash);
  return concat(
      "after step ", steps_done - 1, ": ", param.name,
      " is not the same on ranks that share it: ", text, " (",
      std::count(differs.begin(), differs.end(), 1), " of ", differs.size(),
      " tensors differ). A memory, a link or a processor made a mistake: leave out the host of "
      "that rank and resume from a checkpoint of before");
}

}  // namespace openmoe
