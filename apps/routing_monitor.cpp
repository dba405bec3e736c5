#include "apps/routing_monitor.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "apps/agree.h"
#include "core/base/check.h"
#include "core/routing/statistics.h"
#include "data/routing_log.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kTrackedIds = 512;
constexpr std::int64_t kMinSeen = 8;             // of an id, before its favourite counts
constexpr std::int64_t kLoggedPositions = 8192;  // of a step, in the routing log

double share(double part, double whole) {
  return whole > 0.0 ? part / whole : 0.0;
}

std::string log_name(std::int64_t step) {
  char name[64];
  std::snprintf(name, sizeof name, "step-%08lld.h5", static_cast<long long>(step));
  return name;
}

// -1: the name is not one of log_name.
std::int64_t step_of_log(const std::string& name) {
  long long step = -1;
  if (std::sscanf(name.c_str(), "step-%lld.h5", &step) != 1 || step < 0) return -1;
  return name == log_name(step) ? step : -1;
}

Json loss_rates(const LiveCounts::Losses& losses) {
  const auto tokens = static_cast<double>(losses.tokens);
  return {{"tokens", losses.tokens},
          {"lost_first", share(static_cast<double>(losses.first), tokens)},
          {"lost_second", share(static_cast<double>(losses.second), tokens)},
          {"lost_both", share(static_cast<double>(losses.both), tokens)}};
}

}  // namespace

RoutingMonitor::RoutingMonitor(Network& network, ProcessGrid& grid, const BatchStream& stream,
                               const std::string& run_folder, std::int64_t first_step)
    : network_(network),
      grid_(grid),
      recipe_(stream.recipe()),
      stream_(stream),
      run_folder_(run_folder) {
  const ModelConfig& model = recipe_.model;
  for (std::int64_t layer = 0; layer < model.num_layers; ++layer)
    if (model.is_moe_layer(layer)) layers_.push_back(layer);
  logged_rows_ =
      std::min(recipe_.data.batch_rows,
               std::max<std::int64_t>(1, kLoggedPositions / recipe_.data.sequence_length));
  const auto N = static_cast<std::size_t>(network.model().num_tokens());
  choice_.resize(2 * N);
  slot_.resize(2 * N);
  prob_.resize(N * static_cast<std::size_t>(model.num_experts));
  if (recipe_.run.routing_every == 0 || layers_.empty()) return;
  on_root(grid.world(), [&] { open_folder(first_step); });
  share_favourites();
  mark_checkpoint(first_step);
}

void RoutingMonitor::mark_checkpoint(std::int64_t steps) {
  at_checkpoint_ = tracked_.experts;
  checkpoint_step_ = steps;
}

// On rank 0. Takes up the favourites of the newest log before `first_step`.
void RoutingMonitor::open_folder(std::int64_t first_step) {
  const fs::path folder = fs::path(run_folder_) / "routing";
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw UserError(concat(folder.string(), ": cannot create the folder for routing logs: ",
                           error.message(), "; remove what is there, or set run.routing_every=0"));
  std::int64_t newest = -1;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::int64_t step = step_of_log(entry.path().filename().string());
    if (step >= first_step) fs::remove(entry.path(), error);
    if (step < first_step) newest = std::max(newest, step);
    if (error) break;
  }
  if (error)
    throw UserError(concat(folder.string(), ": cannot be gone through: ", error.message(),
                           "; make it readable and writable, or set run.routing_every=0"));
  if (newest < 0) return;
  RoutingLog log;
  try {
    log = read_routing_log((folder / log_name(newest)).string());
  } catch (const std::runtime_error& problem) {
    // No reason not to train: only the comparison with earlier steps begins anew.
    std::fprintf(stderr, "warning: favourite experts of earlier steps are not known: %s\n",
                 problem.what());
    return;
  }
  if (log.trace.num_experts == recipe_.model.num_experts &&
      log.favourites.experts.size() == layers_.size())
    tracked_ = std::move(log.favourites);
}

// From rank 0 to all.
void RoutingMonitor::share_favourites() {
  std::vector<std::int32_t> values = tracked_.ids;
  for (const auto& layer : tracked_.experts)
    values.insert(values.end(), layer.begin(), layer.end());
  std::string bytes(reinterpret_cast<const char*>(values.data()),
                    values.size() * sizeof(values[0]));
  grid_.world().broadcast(bytes, 0);
  values.resize(bytes.size() / sizeof(values[0]));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  const std::size_t count = values.size() / (1 + layers_.size());
  const auto part = [&](std::size_t index) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(index * count);
    return std::vector<std::int32_t>(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  tracked_.ids = part(0);
  tracked_.experts.clear();
  for (std::size_t l = 0; l < layers_.size() && count > 0; ++l)
    tracked_.experts.push_back(part(1 + l));
}

bool RoutingMonitor::wants(std::int64_t step) const {
  const RunConfig& run = recipe_.run;
  return run.routing_every > 0 && !layers_.empty() &&
         (step % run.routing_every == 0 || step + 1 == run.num_steps);
}

void RoutingMonitor::begin(const Batch& batch) {
  if (tracked_.ids.empty()) {
    std::vector<std::int64_t> seen(static_cast<std::size_t>(recipe_.model.vocab_size), 0);
    for (std::size_t n = 0; n < batch.inputs.size(); ++n)
      if (batch.segment_ids[n] > 0) ++seen[static_cast<std::size_t>(batch.inputs[n])];
    grid_.data().all_reduce_sum(std::span<std::int64_t>(seen));
    tracked_.ids = most_frequent_ids(seen, kTrackedIds);
    tracked_.experts.assign(layers_.size(), std::vector<std::int32_t>(tracked_.ids.size(), -1));
  }
  counts_.emplace(static_cast<std::int64_t>(layers_.size()), recipe_.model.num_experts,
                  static_cast<std::int64_t>(stream_.source_names().size()),
                  recipe_.data.sequence_length, tracked_.ids);
  received_.assign(layers_.size(), 0);
  logged_.clear();
}

// One row of the log, as it travels to rank 0: source, tokens (T), real (T), choices by layer (T,
// 2).
void RoutingMonitor::observe(const Batch& batch, std::int64_t first_row) {
  const std::int64_t T = batch.sequence_length, E = recipe_.model.num_experts;
  const std::int64_t N = network_.model().num_tokens();
  const std::int64_t rows = std::clamp<std::int64_t>(logged_rows_ - first_row, 0, batch.num_rows);
  std::vector<std::vector<std::int32_t>> parts(static_cast<std::size_t>(rows));
  const auto put = [&](const std::vector<std::int32_t>& values, std::int64_t width) {
    for (std::int64_t row = 0; row < rows; ++row)
      parts[static_cast<std::size_t>(row)].insert(parts[static_cast<std::size_t>(row)].end(),
                                                  values.begin() + row * width,
                                                  values.begin() + (row + 1) * width);
  };
  put(batch.row_sources, 1);
  put(batch.inputs, T);
  put(batch.segment_ids, T);
  std::size_t l = 0;
  for (const MoeActivations* layer : network_.model().moe_activations()) {
    network_.ops().copy(host_view(choice_.data(), {N, 2}), layer->router.choice);
    network_.ops().copy(host_view(slot_.data(), {N, 2}), layer->router.slot);
    network_.ops().copy(host_view(prob_.data(), {N, E}), layer->router.prob);
    counts_->add(l, batch, {choice_.data(), slot_.data(), prob_.data()});
    received_[l] += layer->routing.num_received;
    put(choice_, 2 * T);
    ++l;
  }
  for (const auto& part : parts)
    logged_.append(reinterpret_cast<const char*>(part.data()), part.size() * sizeof(part[0]));
}

Json RoutingMonitor::finish(std::int64_t step, const StepSums& sums, const BatchCounts& counts) {
  std::vector<std::int64_t> integers = counts_->integers();
  std::vector<double> reals = counts_->reals();
  grid_.data().all_reduce_sum(std::span<std::int64_t>(integers));
  grid_.data().all_reduce_sum(std::span<double>(reals));
  counts_->assign(integers, reals);
  const std::vector<double> imbalance = rank_imbalance();
  Json rows = Json::array();
  for (std::size_t l = 0; l < layers_.size(); ++l)
    rows.push_back(layer_row(l, sums, counts, imbalance[l]));
  write_log(step);
  return rows;
}

Json RoutingMonitor::layer_row(std::size_t l, const StepSums& sums, const BatchCounts& counts,
                               double rank_imbalance) {
  const LiveCounts::Layer& layer = counts_->layers()[l];
  const LiveCounts::Losses total = counts_->total(l);
  const auto tokens = static_cast<double>(total.tokens);
  Json row = {{"layer", layers_[l]},
              {"first", layer.first},
              {"second", layer.second},
              {"kept", layer.kept}};
  Json shares = Json::array();
  for (std::size_t e = 0; e < layer.first.size(); ++e)
    shares.push_back(share(static_cast<double>(layer.first[e] + layer.second[e]), 2.0 * tokens));
  row["expert_share"] = shares;
  row.update(loss_rates(total));
  for (const LiveCounts::Losses& losses : layer.by_position)
    row["by_position"].push_back(loss_rates(losses));
  row["by_source"] = Json::object();
  for (std::size_t s = 0; s < layer.by_source.size(); ++s)
    if (layer.by_source[s].tokens > 0)
      row["by_source"][stream_.source_names()[s]] = loss_rates(layer.by_source[s]);
  row["entropy_bits"] = share(layer.entropy, tokens);
  row["confidence"] = share(layer.confidence, tokens);
  row["balance_loss"] = share(sums.moe[l].balance, counts.routed_groups);
  row["z_loss"] = share(sums.moe[l].z, counts.routed_tokens);
  row["rank_imbalance"] = rank_imbalance;
  const Unchanged unchanged = unchanged_favourites(l);
  if (unchanged.since_seen >= 0.0) row["unchanged_favourites"] = unchanged.since_seen;
  if (unchanged.since_checkpoint >= 0.0) {
    row["checkpoint"] = checkpoint_step_;
    row["unchanged_since_checkpoint"] = unchanged.since_checkpoint;
  }
  return row;
}

// Remembers the new favourites.
RoutingMonitor::Unchanged RoutingMonitor::unchanged_favourites(std::size_t l) {
  const auto E = static_cast<std::size_t>(recipe_.model.num_experts);
  const std::vector<std::int64_t>& counts = counts_->layers()[l].token_first;
  struct Comparison {
    std::int64_t same = 0, compared = 0;
    void add(std::int32_t before, std::int32_t now) {
      compared += before >= 0 ? 1 : 0;
      same += before == now ? 1 : 0;
    }
    double result() const {
      return compared > 0 ? share(static_cast<double>(same), static_cast<double>(compared)) : -1.0;
    }
  };
  Comparison seen_before, checkpoint;
  for (std::size_t i = 0; i < tracked_.ids.size(); ++i) {
    const std::span<const std::int64_t> row(counts.data() + i * E, E);
    std::int64_t seen = 0;
    for (const std::int64_t count : row) seen += count;
    if (seen < kMinSeen) continue;
    const auto now = static_cast<std::int32_t>(favourite(row));
    seen_before.add(tracked_.experts[l][i], now);
    if (!at_checkpoint_.empty()) checkpoint.add(at_checkpoint_[l][i], now);
    tracked_.experts[l][i] = now;
  }
  return {seen_before.result(), checkpoint.result()};
}

// Most rows that a rank received over the mean of all ranks; 1 is balance.
std::vector<double> RoutingMonitor::rank_imbalance() {
  std::vector<std::int64_t> most = received_, sum = received_;
  grid_.data().all_reduce_max(std::span<std::int64_t>(most));
  grid_.data().all_reduce_sum(std::span<std::int64_t>(sum));
  std::vector<double> result;
  for (std::size_t l = 0; l < most.size(); ++l)
    result.push_back(sum[l] > 0 ? static_cast<double>(most[l]) *
                                      static_cast<double>(grid_.num_data_ranks()) /
                                      static_cast<double>(sum[l])
                                : 1.0);
  return result;
}

void RoutingMonitor::write_log(std::int64_t step) {
  const std::vector<std::string> gathered = grid_.data().all_gather(logged_);
  on_root(grid_.world(), [&] {
    const std::int64_t T = recipe_.data.sequence_length;
    const auto layers = static_cast<std::int64_t>(layers_.size());
    const auto row_size = static_cast<std::size_t>(1 + 2 * T + 2 * T * layers);
    std::string bytes;
    for (const std::string& part : gathered) bytes += part;
    std::vector<std::int32_t> values(bytes.size() / sizeof(std::int32_t));
    std::memcpy(values.data(), bytes.data(), bytes.size());

    RoutingLog log;
    log.name = recipe_.name;
    log.step = step;
    log.trace.num_experts = recipe_.model.num_experts;
    log.trace.sequence_length = T;
    log.trace.sources = stream_.source_names();
    for (const std::int64_t layer : layers_) log.trace.layers.push_back({layer, {}, {}});
    // Rows of one source follow each other, each is a document.
    std::vector<const std::int32_t*> rows;
    for (std::size_t at = 0; at + row_size <= values.size(); at += row_size)
      rows.push_back(values.data() + at);
    std::stable_sort(rows.begin(), rows.end(),
                     [](const std::int32_t* a, const std::int32_t* b) { return a[0] < b[0]; });
    for (const std::int32_t* row : rows) {
      const auto document = static_cast<std::int32_t>(log.trace.documents.size());
      log.trace.documents.push_back({row[0], ""});
      log.trace.sequence_sources.push_back(row[0]);
      for (std::int64_t t = 0; t < T; ++t) {
        if (row[1 + T + t] == 0) continue;  // padding
        log.trace.token_ids.push_back(row[1 + t]);
        log.trace.document.push_back(document);
        for (std::int64_t l = 0; l < layers; ++l)
          for (std::int64_t k = 0; k < 2; ++k)
            log.trace.layers[static_cast<std::size_t>(l)].choice.push_back(
                static_cast<std::uint16_t>(row[1 + 2 * T + 2 * T * l + 2 * t + k]));
      }
      log.trace.sequence_offsets.push_back(log.trace.num_tokens());
    }
    if (log.trace.num_tokens() == 0) return;
    log.favourites = tracked_;
    write_routing_log(run_folder_ + "/routing/" + log_name(step), log);
  });
}

}  // namespace openmoe
