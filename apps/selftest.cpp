// `openmoe selftest --golden DIR`: runs the steps of golden files on this machine, backend and
// grid, and compares everything.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/device.h"
#include "apps/network.h"
#include "apps/step_agreement.h"
#include "apps/training_step.h"
#include "core/base/error.h"
#include "core/train/adafactor.h"
#include "data/h5_file.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

// Largest allowed differences from a golden file.
struct Tolerance {
  double tensor = 0.0;  // logits, gradients, updated parameters: of the tensor's largest magnitude
  double loss = 0.0;    // relative
};

// bf16 files are rounded at the same places as the program, with exact sums between. An f32 sum
// near the middle of two bf16 numbers may then round to the other one, which moves that element by
// one unit of its last place, 2^-7 at most, and what is computed from it by less. (Files without
// any rounding are farther away: 1e-2 to 5e-1.)
Tolerance tolerance_for(ComputeType compute) {
  if (compute == ComputeType::bf16) return {.tensor = 1.0 / 128.0, .loss = 5e-5};
  return {.tensor = 2e-4, .loss = 1e-5};
}

struct SelftestOptions {
  std::string golden_folder;
  std::int64_t ep = 1, tp = 1;
  DeviceOptions device;
};

// The worst disagreement of one kind in one file.
struct Worst {
  std::string name = "-";
  double error = 0.0;

  void update(const std::string& candidate, double value) {
    if (std::isnan(value)) value = std::numeric_limits<double>::infinity();
    if (value > error) {
      name = candidate;
      error = value;
    }
  }
};

struct CaseResult {
  std::string skipped;  // reason, or empty
  Tolerance tolerance;
  Worst tensor, loss;
  std::int64_t routing_mismatches = 0;
  bool passed() const {
    return tensor.error <= tolerance.tensor && loss.error <= tolerance.loss &&
           routing_mismatches == 0;
  }
};

template <typename Enum>
Enum choose(const nlohmann::json& value, const std::map<std::string, Enum>& names) {
  const auto found = names.find(value.get<std::string>());
  if (found == names.end()) throw UserError("golden config: unknown option " + value.dump());
  return found->second;
}

Recipe recipe_of(const H5File& file, std::int64_t rows, std::int64_t length) {
  const auto config = nlohmann::json::parse(file.string_attribute("/", "config"));
  Recipe recipe;
  const auto get = [&](const char* key, auto& field) { config.at(key).get_to(field); };
  ModelConfig& m = recipe.model;
  get("vocab", m.vocab_size);
  get("layers", m.num_layers);
  get("d_model", m.d_model);
  get("heads", m.num_heads);
  get("head_dim", m.head_dim);
  get("ffn_dim", m.ffn_dim);
  get("experts", m.num_experts);
  get("moe_every", m.moe_interval);
  get("tied_embedding", m.tied_embedding);
  get("norm_eps", m.norm_eps);
  get("rope_base", m.rope_base);
  m.ffn = choose<FfnKind>(config.at("ffn"),
                          {{"gated_swiglu", FfnKind::gated_swiglu}, {"swiglu", FfnKind::swiglu}});
  m.residual_ffn = choose<ResidualFfn>(
      config.at("residual_ffn"),
      {{"sequential", ResidualFfn::sequential}, {"parallel", ResidualFfn::parallel}});
  m.parallel_block = config.value("parallel_block", false);
  m.attention_scale = choose<AttentionScale>(
      config.at("attention_scale"),
      {{"folded", AttentionScale::folded}, {"rsqrt", AttentionScale::rsqrt}});
  RoutingConfig& r = recipe.routing;
  get("group_tokens", r.group_tokens);
  get("capacity_factor", r.capacity_factor);
  get("min_capacity", r.min_capacity);
  get("normalize_gates", r.normalize_gates);
  get("route_padding", r.route_padding);
  r.eval_capacity_factor = r.capacity_factor;
  r.capacity_counts = choose<CapacityCounts>(config.at("capacity_counts"),
                                             {{"tokens", CapacityCounts::tokens},
                                              {"assignments", CapacityCounts::assignments},
                                              {"dropless", CapacityCounts::dropless}});
  get("load_balance_weight", recipe.loss.load_balance_weight);
  get("router_z_weight", recipe.loss.router_z_weight);
  get("logits_z_weight", recipe.loss.logits_z_weight);
  OptimizerConfig& o = recipe.optimizer;
  get("peak_lr", o.peak_learning_rate);
  get("warmup_steps", o.warmup_steps);
  get("decay_rate", o.decay_rate);
  get("clip_threshold", o.clip_threshold);
  get("eps_square", o.epsilon_square);
  get("eps_scale", o.epsilon_scale);
  get("min_dim_to_factor", o.min_dim_to_factor);
  if (config.contains("compute_type"))
    recipe.run.compute_type = choose<ComputeType>(
        config.at("compute_type"), {{"f32", ComputeType::f32}, {"bf16", ComputeType::bf16}});
  recipe.data.batch_rows = rows;
  recipe.data.sequence_length = length;
  return recipe;
}

// One golden file on this rank: its rows of each batch, its experts of each stack.
class GoldenCase {
 public:
  GoldenCase(const std::string& path, Ops& ops, ProcessGrid& grid)
      : file_(path, H5File::Mode::read), ops_(ops), grid_(grid) {
    const Shape shape = file_.info("step_0/inputs").shape;
    total_rows_ = shape[0];
    length_ = shape[1];
    recipe_ = recipe_of(file_, total_rows_, length_);
  }

  CaseResult run() {
    CaseResult result;
    result.tolerance = tolerance_for(recipe_.run.compute_type);
    result.skipped = reason_to_skip();
    if (!result.skipped.empty()) return result;
    const auto capacity = recipe_.routing.capacity(recipe_.model.num_experts, true);
    if (file_.int_attribute("/", "expert_capacity") != capacity)
      result.tensor.update("expert_capacity", std::numeric_limits<double>::infinity());
    Network network(ops_, grid_, recipe_, rows_per_rank_, true);
    load("initial/", network.params());
    for (std::int64_t step = 0; file_.exists(group_of(step)); ++step)
      run_step(network, step, result);
    agree(result);
    return result;
  }

 private:
  static std::string group_of(std::int64_t step) { return "step_" + std::to_string(step); }

  std::string reason_to_skip() {
    const ModelConfig& model = recipe_.model;
    const std::int64_t ranks = grid_.num_data_ranks(), tokens = total_rows_ * length_;
    if (model.num_heads % grid_.tp() != 0)
      return concat("tp ", grid_.tp(), " does not divide ", model.num_heads, " heads");
    const bool has_moe = model.num_moe_layers() > 0;
    if (has_moe && model.num_experts % grid_.ep() != 0)
      return concat("ep ", grid_.ep(), " does not divide ", model.num_experts, " experts");
    // Rows that hold whole groups: a block of `unit` rows.
    const std::int64_t group = has_moe ? recipe_.routing.group_tokens : length_;
    std::int64_t unit = 1;
    while (unit * length_ % group != 0) ++unit;
    const std::int64_t blocks = total_rows_ / unit;
    if (has_moe && tokens / group < ranks)
      return concat(tokens / group, " routing groups for ", ranks, " ranks");
    if (blocks < ranks)
      return concat(blocks, " blocks of whole rows and groups for ", ranks, " ranks");
    const std::int64_t blocks_per_rank = (blocks + ranks - 1) / ranks;
    if (blocks % ranks != 0 && recipe_.routing.route_padding)
      return concat(blocks, " blocks of rows over ", ranks,
                    " ranks would add padding, which this case routes");
    rows_per_rank_ = blocks_per_rank * unit;
    return "";
  }

  std::int64_t first_row() const {
    return std::min(total_rows_, grid_.data_rank() * rows_per_rank_);
  }
  std::int64_t num_rows() const { return std::min(total_rows_ - first_row(), rows_per_rank_); }

  // This rank's slice of a parameter-shaped dataset.
  std::vector<float> read_slice(const std::string& name, const Param& param) const {
    std::vector<float> values(static_cast<std::size_t>(param.local_shape.num_elements()));
    const Tensor local = host_view(values.data(), param.local_shape);
    for (const Piece& piece : param.placement(&Param::value).pieces)
      file_.read_box(name, piece, local);
    return values;
  }

  void load(const std::string& prefix, ParamTable& params) {
    for (Param& param : params.params()) {
      std::vector<float> values = read_slice(prefix + param.name, param);
      ops_.copy(param.value, host_view(values.data(), param.local_shape));
    }
    params.round_operands(ops_);
  }

  Batch read_batch(const std::string& group) const {
    Batch batch;
    batch.resize(rows_per_rank_, length_);
    if (num_rows() == 0) return batch;
    const auto read = [&](const char* name, auto& values) {
      file_.read_rows(group + "/" + name, first_row(),
                      host_view(values.data(), {num_rows(), length_}));
    };
    read("inputs", batch.inputs);
    read("targets", batch.targets);
    read("loss_weights", batch.loss_weights);
    read("segment_ids", batch.segment_ids);
    return batch;
  }

  void compare(Worst& worst, const std::string& name, const std::vector<float>& ours,
               const std::vector<float>& golden) const {
    double largest = 0.0, difference = 0.0;
    for (const float value : golden)
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    for (std::size_t i = 0; i < golden.size(); ++i) {
      const double d = std::abs(static_cast<double>(ours[i]) - static_cast<double>(golden[i]));
      difference =
          std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(difference, d);
    }
    worst.update(name, largest > 0.0 ? difference / largest : difference);
  }

  void compare_params(CaseResult& result, const std::string& prefix, ParamTable& params,
                      Tensor Param::*member) {
    for (Param& param : params.params()) {
      const std::string name = prefix + param.name;
      std::vector<float> ours(static_cast<std::size_t>(param.local_shape.num_elements()));
      ops_.copy(host_view(ours.data(), param.local_shape), param.*member);
      std::vector<float> golden = read_slice(name, param);
      if (member == &Param::value) forgive_signs(param, prefix, ours, golden);
      compare(result.tensor, name, ours, golden);
    }
  }

  // The first update of an unfactored parameter is the sign of its gradient (v = g^2, u = g /
  // sqrt(v)). Where rounding to bf16 leaves the gradient's sign open, so is the update: what is
  // there is not compared.
  void forgive_signs(const Param& param, const std::string& updated, std::vector<float>& ours,
                     const std::vector<float>& golden) const {
    const bool is_first = updated == group_of(0) + "/updated/";
    if (!is_first || param.factored || recipe_.run.compute_type != ComputeType::bf16) return;
    const std::vector<float> gradient = read_slice(group_of(0) + "/grad/" + param.name, param);
    float largest = 0.0f;
    for (const float value : gradient) largest = std::max(largest, std::abs(value));
    const double open = tolerance_for(ComputeType::bf16).tensor * static_cast<double>(largest);
    for (std::size_t i = 0; i < gradient.size(); ++i)
      if (std::abs(static_cast<double>(gradient[i])) <= open) ours[i] = golden[i];
  }

  void run_step(Network& network, std::int64_t step, CaseResult& result) {
    const std::string group = group_of(step);
    const ModelConfig& config = recipe_.model;
    const Batch batch = read_batch(group);
    const BatchCounts counts = agree_on_step(batch, recipe_, grid_, 0).counts;

    // Of this rank's part of the vocabulary.
    const Param& head = network.params().find(config.tied_embedding ? "model.embed_tokens.weight"
                                                                    : "lm_head.weight");
    const std::int64_t width = head.local_shape[0];
    std::vector<float> logits(static_cast<std::size_t>(rows_per_rank_ * length_ * width));
    network.model().observe_logits([&](std::int64_t first, Tensor chunk) {
      ops_.copy(host_view(logits.data() + first * width, chunk.shape), chunk);
    });
    const StepOutcome outcome = TrainingStep(network, grid_, recipe_).run(batch, counts, step);

    compare_losses(result, group, outcome.losses, step);
    if (file_.exists(group + "/logits")) {
      logits.resize(static_cast<std::size_t>(num_rows() * length_ * width));
      compare_logits(result, group, logits,
                     head.placement(&Param::value).pieces.front().global_begin[0]);
      compare_routing(result, group, network.model());
      compare_params(result, group + "/grad/", network.params(), &Param::grad);
    }
    if (file_.exists(group + "/updated"))
      compare_params(result, group + "/updated/", network.params(), &Param::value);
  }

  void compare_losses(CaseResult& result, const std::string& group, const StepLosses& losses,
                      std::int64_t step) {
    const std::pair<const char*, double> ours[] = {
        {"cross_entropy", losses.cross_entropy},
        {"logits_z_loss", losses.logits_z},
        {"load_balance_loss", losses.load_balance},
        {"router_z_loss", losses.router_z},
        {"total_loss", losses.total},
        {"accuracy", losses.accuracy},
        {"learning_rate", learning_rate_at(recipe_.optimizer, step)}};
    for (const auto& [name, value] : ours) {
      const double golden = file_.double_attribute(group, name);
      const double scale = std::abs(golden) > 0.0 ? std::abs(golden) : 1.0;
      result.loss.update(group + "/" + name, std::abs(value - golden) / scale);
    }
  }

  void compare_logits(CaseResult& result, const std::string& group, const std::vector<float>& ours,
                      std::int64_t first_id) {
    if (num_rows() == 0) return;
    std::vector<float> golden(ours.size());
    const Shape shape{num_rows(), length_,
                      static_cast<std::int64_t>(ours.size()) / (num_rows() * length_)};
    file_.read_box(group + "/logits", {{first_row(), 0, first_id}, {0, 0, 0}, shape},
                   host_view(golden.data(), shape));
    compare(result.tensor, group + "/logits", ours, golden);
  }

  void compare_routing(CaseResult& result, const std::string& group, const Model& model) {
    const std::int64_t tokens = num_rows() * length_, first = first_row() * length_;
    if (tokens == 0) return;
    const auto acts = model.moe_activations();
    for (std::size_t layer = 0; layer < acts.size(); ++layer) {
      const RouterOutput& router = acts[layer]->router;
      const std::string prefix = group + "/routing_" + std::to_string(layer) + "/";
      const auto mismatches = [&](const char* name, Tensor tensor) {
        std::vector<std::int32_t> ours(static_cast<std::size_t>(2 * tokens)), golden(ours.size());
        ops_.copy(host_view(ours.data(), {tokens, 2}), tensor.rows(0, tokens));
        file_.read_rows(prefix + name, first, host_view(golden.data(), {tokens, 2}));
        std::int64_t count = 0;
        for (std::size_t i = 0; i < ours.size(); ++i) count += ours[i] != golden[i];
        return count;
      };
      result.routing_mismatches +=
          mismatches("choice", router.choice) + mismatches("slot", router.slot);
      std::vector<float> prob(static_cast<std::size_t>(tokens * recipe_.model.num_experts)),
          golden(prob.size());
      const Shape shape{tokens, recipe_.model.num_experts};
      ops_.copy(host_view(prob.data(), shape), router.prob.rows(0, tokens));
      file_.read_rows(prefix + "prob", first, host_view(golden.data(), shape));
      compare(result.tensor, prefix + "prob", prob, golden);
    }
  }

  // Every rank ends with the worst of all ranks.
  void agree(CaseResult& result) {
    std::int64_t mismatches[] = {result.routing_mismatches};
    grid_.world().all_reduce_sum(std::span<std::int64_t>(mismatches));
    result.routing_mismatches = mismatches[0];
    for (Worst* worst : {&result.tensor, &result.loss}) {
      char text[64];
      std::snprintf(text, sizeof text, "%a ", worst->error);
      for (const std::string& other : grid_.world().all_gather(text + worst->name)) {
        const std::size_t space = other.find(' ');
        worst->update(other.substr(space + 1), std::strtod(other.c_str(), nullptr));
      }
    }
  }

  H5File file_;
  Ops& ops_;
  ProcessGrid& grid_;
  Recipe recipe_;
  std::int64_t total_rows_ = 0, length_ = 0, rows_per_rank_ = 0;
};

int run_selftest(const SelftestOptions& options, MpiEnvironment& mpi) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(options.golden_folder))
    throw UserError("--golden " + options.golden_folder + ": no such folder");
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(options.golden_folder))
    if (entry.path().extension() == ".h5") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) throw UserError("--golden " + options.golden_folder + ": no *.h5 file in it");

  ProcessGrid grid(mpi.world(), options.ep, options.tp);
  const auto ops = make_ops(options.device, mpi);
  const DeviceGroups device_groups(options.device, grid, *ops);
  int failed = 0, skipped = 0;
  for (const std::string& path : paths) {
    const CaseResult result = GoldenCase(path, *ops, grid).run();
    const std::string name = fs::path(path).filename().string();
    failed += result.skipped.empty() && !result.passed();
    skipped += !result.skipped.empty();
    if (!grid.is_root()) continue;
    if (!result.skipped.empty())
      std::printf("SKIP  %s: %s\n", name.c_str(), result.skipped.c_str());
    else
      std::printf(
          "%s  %s: worst tensor %s %.2e (limit %.0e), worst loss %s %.2e (limit %.0e), routing "
          "mismatches %lld\n",
          result.passed() ? "PASS" : "FAIL", name.c_str(), result.tensor.name.c_str(),
          result.tensor.error, result.tolerance.tensor, result.loss.name.c_str(), result.loss.error,
          result.tolerance.loss, static_cast<long long>(result.routing_mismatches));
    std::fflush(stdout);
  }
  if (grid.is_root())
    std::printf("%zu golden files: %zu passed, %d failed, %d skipped\n", paths.size(),
                paths.size() - static_cast<std::size_t>(failed + skipped), failed, skipped);
  return failed == 0 ? kExitSuccess : kExitFailure;
}

}  // namespace

void register_selftest(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<SelftestOptions>();
  CLI::App* command =
      app.add_subcommand("selftest", "prove this binary, backend and grid against golden files");
  command->add_option("--golden", options->golden_folder, "folder of golden *.h5 files")
      ->required();
  command->add_option("--ep", options->ep, "expert-parallel degree")->check(CLI::PositiveNumber);
  command->add_option("--tp", options->tp, "tensor-parallel degree")->check(CLI::PositiveNumber);
  add_device_options(*command, options->device);
  command->callback([&context, options] {
    context.run = [&context, options] { return run_selftest(*options, context.mpi); };
  });
}

}  // namespace openmoe
