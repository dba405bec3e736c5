#include "parallel/process_grid.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

std::string join(const std::vector<std::int64_t>& values) {
  std::string text;
  for (std::size_t i = 0; i < values.size(); ++i)
    text += (i == 0 ? "" : i + 1 == values.size() ? " or " : ", ") + std::to_string(values[i]);
  return text;
}

std::vector<std::int64_t> common_divisors(std::int64_t a, std::int64_t b) {
  std::vector<std::int64_t> divisors;
  const std::int64_t common = std::gcd(a, b);
  for (std::int64_t d = 1; d <= common; ++d)
    if (common % d == 0) divisors.push_back(d);
  return divisors;
}

// The one or two multiples of `unit` around `value`, at least `unit` itself.
std::vector<std::int64_t> nearest_multiples(std::int64_t value, std::int64_t unit) {
  const std::int64_t below = value / unit * unit;
  if (below < unit) return {unit};
  if (below == value) return {value};
  return {below, below + unit};
}

// Rows that make up whole routing groups; 1 when nothing is routed.
std::int64_t rows_per_group_unit(const Recipe& recipe) {
  if (recipe.model.num_moe_layers() == 0) return 1;
  const std::int64_t group = recipe.routing.group_tokens;
  return group / std::gcd(group, recipe.data.sequence_length);
}

// Micro-batch sizes that split `rows` evenly into multiples of `unit`, nearest to `wanted` first.
std::vector<std::int64_t> micro_batch_choices(std::int64_t rows, std::int64_t unit,
                                              std::int64_t wanted) {
  std::vector<std::int64_t> choices;
  for (std::int64_t m = unit; m <= rows; m += unit)
    if (rows % m == 0) choices.push_back(m);
  std::stable_sort(choices.begin(), choices.end(), [wanted](std::int64_t a, std::int64_t b) {
    return std::abs(a - wanted) < std::abs(b - wanted);
  });
  if (choices.size() > 3) choices.resize(3);
  std::sort(choices.begin(), choices.end());
  return choices;
}

std::string check_experts(const ProcessGrid& grid, const Recipe& recipe) {
  const std::int64_t num_experts = recipe.model.num_experts;
  if (recipe.model.num_moe_layers() == 0 || num_experts % grid.ep() == 0) return "";
  const std::int64_t num_ranks = grid.num_data_ranks();
  return concat("\n  expert parallelism: ep = ", grid.ep(),
                " does not divide model.num_experts = ", num_experts, "; with ", num_ranks,
                num_ranks == 1 ? " rank" : " ranks", " use --ep ",
                join(common_divisors(num_experts, num_ranks)));
}

std::string check_tensor(const ProcessGrid& grid, const Recipe& recipe) {
  const ModelConfig& model = recipe.model;
  const std::int64_t tp = grid.tp(), length = recipe.data.sequence_length;
  std::int64_t common = 0;  // what tp must divide
  std::string odd;
  for (const auto& [name, size] :
       {std::pair<const char*, std::int64_t>{"model.num_heads", model.num_heads},
        {"model.ffn_dim", model.ffn_dim},
        {"model.d_model", model.d_model},
        {"data.sequence_length", length}}) {
    common = std::gcd(common, size);
    if (size % tp != 0) odd += concat(odd.empty() ? "" : ", ", name, " = ", size);
  }
  if (odd.empty()) return "";
  return concat("\n  tensor parallelism: tp = ", tp, " does not divide ", odd, "; use --tp ",
                join(common_divisors(common, common)));
}

std::string check_rows(const ProcessGrid& grid, const Recipe& recipe) {
  const std::int64_t batch = recipe.data.batch_rows;
  const std::int64_t ranks = grid.num_data_ranks();
  const std::int64_t unit = rows_per_group_unit(recipe);
  const std::string fitting = concat("; nearest data.batch_rows that would do: ",
                                     join(nearest_multiples(batch, ranks * unit)));
  if (batch % ranks != 0)
    return concat("\n  data.batch_rows = ", batch, " does not divide evenly over ", ranks,
                  " data ranks (dp ", grid.dp(), " x ep ", grid.ep(), ")", fitting);
  const std::int64_t rows = batch / ranks;
  if (rows % unit == 0) return "";
  return concat("\n  data.batch_rows = ", batch, " over ", ranks, " data ranks (dp ", grid.dp(),
                " x ep ", grid.ep(), ") gives a rank ", rows, " rows x data.sequence_length ",
                recipe.data.sequence_length, " = ", rows * recipe.data.sequence_length,
                " tokens, which is not a whole number of routing groups of routing.group_tokens = ",
                recipe.routing.group_tokens, " (", unit, " rows hold whole groups)", fitting,
                "; or use a number of ranks that gives each a multiple of ", unit, " rows");
}

std::string check_micro_batch(const ProcessGrid& grid, const Recipe& recipe) {
  const std::int64_t micro = recipe.parallel.micro_batch_rows;
  const std::int64_t rows = recipe.data.batch_rows / grid.num_data_ranks();
  const std::int64_t unit = rows_per_group_unit(recipe);
  if (micro == 0 || (micro > 0 && rows % micro == 0 && micro % unit == 0)) return "";
  return concat(
      "\n  parallel.micro_batch_rows = ", micro, " must split the ", rows, " rows of a rank evenly",
      unit > 1 ? concat(" into multiples of ", unit, " rows (whole routing groups of ",
                        recipe.routing.group_tokens, " tokens)")
               : "",
      "; use ", join(micro_batch_choices(rows, unit, micro)), ", or 0 for all rows at once");
}

std::string check_update_in_backward(const ProcessGrid& grid, const Recipe& recipe) {
  const std::int64_t micro = recipe.parallel.micro_batch_rows;
  const std::int64_t rows = recipe.data.batch_rows / grid.num_data_ranks();
  if (!recipe.parallel.update_in_backward || micro == 0 || micro >= rows) return "";
  return concat("\n  parallel.update_in_backward needs the ", rows,
                " rows of a rank in one micro-batch, but parallel.micro_batch_rows = ", micro,
                "; set it to 0, or update_in_backward to false");
}

}  // namespace

ProcessGrid::ProcessGrid(Communicator& world, std::int64_t ep, std::int64_t tp)
    : world_(&world), dp_(0), ep_(ep), tp_(tp), dp_rank_(0), ep_rank_(0), tp_rank_(0) {
  const std::int64_t size = world.size();
  if (tp < 1 || size % tp != 0)
    throw UserError(concat("tp = ", tp, " does not divide the number of ranks, ", size,
                           "; use --tp ", join(common_divisors(size, size)),
                           ", or start a multiple of ", std::max<std::int64_t>(tp, 1), " ranks"));
  if (ep < 1 || size % (ep * tp) != 0)
    throw UserError(concat("ep = ", ep, " does not divide the number of ranks, ", size,
                           tp > 1 ? concat(" / tp ", tp) : "", "; use --ep ",
                           join(common_divisors(size / tp, size / tp)), ", or start a multiple of ",
                           std::max<std::int64_t>(ep, 1) * tp, " ranks"));
  dp_ = size / (ep * tp);
  const std::int64_t rank = world.rank_in_group();
  tp_rank_ = rank % tp;
  ep_rank_ = rank / tp % ep;
  dp_rank_ = rank / (tp * ep);
  data_ = world.split(static_cast<int>(tp_rank_), static_cast<int>(data_rank()));
  expert_ = world.split(static_cast<int>(dp_rank_ * tp + tp_rank_), static_cast<int>(ep_rank_));
  replicas_ = world.split(static_cast<int>(ep_rank_ * tp + tp_rank_), static_cast<int>(dp_rank_));
  tensor_ = world.split(static_cast<int>(data_rank()), static_cast<int>(tp_rank_));
  data_->set_name("data");
  expert_->set_name("expert");
  replicas_->set_name("replicas");
  tensor_->set_name("tensor");
}

void ProcessGrid::attach_device(const Communicator::MakeTwin& make) {
  twins_.clear();
  std::vector<Communicator*> groups = {expert_.get(), tensor_.get()};
  for (const Sharding sharding : kShardings) groups.push_back(&holders_on_host(sharding));
  for (Communicator* group : groups)
    if (group->size() > 1 && &for_tensors(*group) == group)
      twins_.emplace_back(group, group->twin(make));
}

Communicator& ProcessGrid::for_tensors(Communicator& group) {
  for (const auto& [of, twin] : twins_)
    if (of == &group) return *twin;
  return group;
}

Communicator& ProcessGrid::holders_on_host(Sharding sharding) {
  if (sharding == Sharding::expert) return *replicas_;
  return sharding == Sharding::replicated && tp_ > 1 ? *world_ : *data_;
}

Communicator& ProcessGrid::holders(Sharding sharding) {
  return for_tensors(holders_on_host(sharding));
}

std::string ProcessGrid::coordinates() const {
  return concat("rank ", world_rank(), " (dp ", dp_rank_, ", ep ", ep_rank_, ", tp ", tp_rank_,
                ")");
}

void ProcessGrid::check(const Recipe& recipe) const {
  std::string problems = check_experts(*this, recipe) + check_tensor(*this, recipe);
  const std::string rows = check_rows(*this, recipe);
  problems += rows;
  // A micro-batch can only be judged against rows that are right.
  if (rows.empty())
    problems += check_micro_batch(*this, recipe) + check_update_in_backward(*this, recipe);
  if (!problems.empty())
    throw UserError(concat("recipe '", recipe.name, "' does not fit the grid of ", world_->size(),
                           world_->size() == 1 ? " rank:" : " ranks:", problems));
}

}  // namespace openmoe
