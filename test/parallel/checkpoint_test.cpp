// Checkpoints over every pair of grids, and what happens to damaged, interrupted and impossible
// ones.
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <vector>

#include "apps/background_save.h"
#include "apps/checkpoint.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/cpu/cpu_ops.h"
#include "test/support/ranks.h"
#include "test/support/scratch.h"

namespace openmoe::test {
namespace {

namespace fs = std::filesystem;

ModelConfig small_model() {
  ModelConfig model;
  model.vocab_size = 50;
  model.num_layers = 2;
  model.d_model = 8;
  model.num_heads = 2;
  model.head_dim = 4;
  model.ffn_dim = 6;
  model.num_experts = 12;
  model.moe_interval = 2;
  return model;
}

// The tensors of one rank of a grid.
struct Tables {
  // `divided`: as with parallel.shard_update and bf16.
  Tables(ProcessGrid& grid, const ModelConfig& model = small_model(), bool training = true,
         bool divided = false)
      : ops(make_cpu_ops()),
        table(model, optimizer(),
              {grid.ep(), grid.ep_rank(), grid.tp(), grid.tp_rank(), grid.dp(), grid.dp_rank(),
               divided}) {
    const GradientMemory gradients = training ? GradientMemory::whole : GradientMemory::none;
    const ComputeType compute = divided ? ComputeType::bf16 : ComputeType::f32;
    Arena dry;
    table.allocate(dry, gradients, compute);
    arena.emplace(*ops, dry.used_bytes());
    table.allocate(*arena, gradients, compute);
  }
  // Some matrices factored, some not.
  static OptimizerConfig optimizer() {
    OptimizerConfig config;
    config.min_dim_to_factor = 8;
    return config;
  }
  std::unique_ptr<Ops> ops;
  ParamTable table;
  std::optional<Arena> arena;
};

// Calls body(element, name, its global index) for every element of every saved tensor.
template <typename Body>
void for_each_element(ParamTable& table, const Body& body) {
  for (Param& param : table.params()) {
    const auto visit = [&](const std::string& kind, Tensor Param::*member) {
      const Tensor& tensor = param.*member;
      if (!tensor) return;
      const Placement placement = param.placement(member);
      for (const Piece& piece : placement.pieces) {
        const Runs runs(piece, placement.global_shape, placement.local_shape);
        for (std::int64_t i = 0; i < runs.count(); ++i)
          for (std::int64_t j = 0; j < runs.length(); ++j) {
            const auto [global, local] = runs.at(i);
            body(static_cast<char*>(tensor.data) + 4 * (local + j), kind + param.name,
                 static_cast<std::uint64_t>(global + j));
          }
      }
    };
    visit("value ", &Param::value);
    visit("row ", &Param::stat_row);
    visit("col ", &Param::stat_col);
  }
}

// Any bit pattern, not only ordinary numbers, as a function of (seed, name, global element).
std::uint32_t bits_of(std::uint64_t seed, const std::string& name, std::uint64_t element) {
  return static_cast<std::uint32_t>(Rng(seed, stream_id(name)).bits_at(element));
}

void fill(ParamTable& table, std::uint64_t seed) {
  for_each_element(table, [&](char* element, const std::string& name, std::uint64_t index) {
    const std::uint32_t bits = bits_of(seed, name, index);
    std::memcpy(element, &bits, 4);
  });
}

// Names the first tensor that differs, "" when all are as filled. Statistics only when asked for.
std::string first_difference(ParamTable& table, std::uint64_t seed, bool with_optimizer = true) {
  std::string difference;
  for_each_element(table, [&](const char* element, const std::string& name, std::uint64_t index) {
    if (!with_optimizer && !name.starts_with("value ")) return;
    const std::uint32_t bits = bits_of(seed, name, index);
    if (difference.empty() && std::memcmp(element, &bits, 4) != 0)
      difference = concat(name, " at ", index);
  });
  return difference;
}

CheckpointMeta some_meta(std::int64_t step) {
  return {.step = step,
          .positions = step * 4096,
          .recipe_json = R"({"name": "r", "rate": 1e-06, "nested": {"x": [1, 2]}})",
          .data_fingerprint = "f00d"};
}

// One folder that all ranks of the world see, removed by the root.
class SharedFolder {
 public:
  SharedFolder() {
    if (mpi().world_rank() == 0) {
      scratch_.emplace();
      path_ = scratch_->path();
    }
    mpi().world().broadcast(path_, 0);
  }
  ~SharedFolder() {
    try {
      mpi().world().barrier();
    } catch (const std::exception&) {  // the job ends anyway
    }
  }
  std::string run() const { return path_; }

 private:
  std::optional<Scratch> scratch_;
  std::string path_;
};

void save(ProcessGrid& grid, const std::string& run, std::int64_t step, std::uint64_t seed,
          bool divided = false) {
  Tables tables(grid, small_model(), true, divided);
  fill(tables.table, seed);
  save_checkpoint(checkpoint_folder(run, step), tables.table, some_meta(step), grid);
}

// Tables with a snapshot beside them, and a checkpoint that is written from it.
struct BackgroundTables : Tables {
  explicit BackgroundTables(ProcessGrid& process_grid) : Tables(process_grid), grid(process_grid) {
    Arena dry;
    snapshot.allocate(dry, *ops, table);
    memory.emplace(*ops, dry.used_bytes());
    snapshot.allocate(*memory, *ops, table);
    save.emplace(snapshot, grid);
  }
  void start(const std::string& run, std::int64_t step, std::uint64_t seed) {
    fill(table, seed);
    save->start(checkpoint_folder(run, step), some_meta(step), *ops, table);
  }
  ProcessGrid& grid;
  CheckpointSnapshot snapshot;
  std::optional<Arena> memory;
  std::optional<BackgroundSave> save;
};

// Why loading fails on this grid, "" when it does not. Every rank must say the same.
std::string load_error(ProcessGrid& grid, const std::string& folder,
                       const ModelConfig& model = small_model()) {
  Tables tables(grid, model);
  std::string message =
      message_of<UserError>([&] { load_checkpoint(folder, tables.table, grid, true); });
  const std::vector<std::string> messages = grid.world().all_gather(message);
  REQUIRE(std::all_of(messages.begin(), messages.end(),
                      [&](const std::string& m) { return m == message; }));
  return message;
}

std::vector<std::string> entries_of(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// Runs `change` on the root between two barriers.
void on_root_between_barriers(const std::function<void()>& change) {
  mpi().world().barrier();
  if (mpi().world_rank() == 0) change();
  mpi().world().barrier();
}

void flip_byte(const std::string& path, std::uintmax_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(byte);
}

}  // namespace

TEST_CASE("a checkpoint of any grid loads on any grid, bit for bit") {
  Communicator& world = mpi().world();
  struct GridShape {
    int ranks;
    std::int64_t ep, tp;
  };
  const GridShape shapes[] = {{1, 1, 1}, {2, 1, 1}, {2, 2, 1}, {2, 1, 2}, {3, 3, 1},
                              {4, 1, 1}, {4, 2, 1}, {4, 4, 1}, {4, 2, 2}, {6, 2, 1},
                              {6, 6, 1}, {6, 3, 2}, {6, 1, 2}};
  SharedFolder shared;
  std::int64_t step = 0;
  const bool is_writer_divided = GENERATE(false, true);
  bool is_reader_divided = false;
  for (const GridShape& writer : shapes) {
    if (writer.ranks > world.size()) continue;
    // The first ranks of the world are a world of their own.
    const auto writers =
        world.split(world.rank_in_group() < writer.ranks ? 0 : 1, world.rank_in_group());
    const std::uint64_t seed = 100 + static_cast<std::uint64_t>(++step);
    std::string failure;
    if (world.rank_in_group() < writer.ranks) {
      ProcessGrid grid(*writers, writer.ep, writer.tp);
      failure = message_of<std::exception>(
          [&] { save(grid, shared.run(), step, seed, is_writer_divided); });
    }
    CAPTURE(failure);
    REQUIRE_ALL_RANKS(failure.empty());
    const std::string folder = checkpoint_folder(shared.run(), step);
    REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == folder);
    // Only ranks of dp_rank 0 have something of their own, unless what they share is divided.
    REQUIRE_ALL_RANKS(static_cast<std::int64_t>(entries_of(folder).size()) ==
                      (is_writer_divided ? writer.ranks : writer.ep * writer.tp) + 1);
    for (const GridShape& reader : shapes) {
      if (reader.ranks > world.size()) continue;
      is_reader_divided = !is_reader_divided;
      INFO("from " << writer.ranks << " ranks, ep " << writer.ep << ", tp " << writer.tp << " to "
                   << reader.ranks << ", ep " << reader.ep << ", tp " << reader.tp
                   << "; divided: " << is_writer_divided << " to " << is_reader_divided);
      const auto readers =
          world.split(world.rank_in_group() < reader.ranks ? 0 : 1, world.rank_in_group());
      std::string difference;
      bool meta_is_right = true;
      if (world.rank_in_group() < reader.ranks) {
        ProcessGrid grid(*readers, reader.ep, reader.tp);
        Tables tables(grid, small_model(), true, is_reader_divided);
        difference = message_of<std::exception>([&] {
          const CheckpointMeta meta = load_checkpoint(folder, tables.table, grid, true);
          meta_is_right = meta.step == step && meta.positions == step * 4096 &&
                          meta.data_fingerprint == "f00d" &&
                          contains(meta.recipe_json, "\"rate\": 1e-06");
        });
        if (difference.empty()) difference = first_difference(tables.table, seed);
      }
      CAPTURE(difference);
      REQUIRE_ALL_RANKS(difference.empty());
      REQUIRE_ALL_RANKS(meta_is_right);
    }
  }
}

TEST_CASE("values alone can be saved and loaded") {
  ProcessGrid grid(mpi().world(), mpi().world_size(), 1);
  SharedFolder shared;
  save(grid, shared.run(), 1, 5);
  Tables inference(grid, small_model(), false);
  load_checkpoint(checkpoint_folder(shared.run(), 1), inference.table, grid, false);
  REQUIRE_ALL_RANKS(first_difference(inference.table, 5).empty());
  save_checkpoint(checkpoint_folder(shared.run(), 2), inference.table, some_meta(2), grid);
  Tables training(grid);
  fill(training.table, 6);
  load_checkpoint(checkpoint_folder(shared.run(), 2), training.table, grid, false);
  REQUIRE_ALL_RANKS(first_difference(training.table, 5, false).empty());
  // Statistics that are not there are asked for by name.
  REQUIRE_ALL_RANKS(contains(load_error(grid, checkpoint_folder(shared.run(), 2)),
                             "holds no stat_row/model.embed_tokens.weight"));
}

TEST_CASE("damaged checkpoints are refused on every rank") {
  ProcessGrid grid(mpi().world(), mpi().world_size(), 1);
  const int last = mpi().world_size() - 1;
  SharedFolder shared;
  const std::string folder = checkpoint_folder(shared.run(), 7);
  const std::string file = concat(folder, "/rank-0000", last, ".h5");
  const auto damaged = [&](const std::function<void()>& damage) {
    on_root_between_barriers([&] { fs::remove_all(folder); });
    save(grid, shared.run(), 7, 1);
    REQUIRE_ALL_RANKS(load_error(grid, folder).empty());
    on_root_between_barriers(damage);
    return load_error(grid, folder);
  };
  std::string message = damaged([&] { fs::resize_file(file, fs::file_size(file) - 1); });
  CAPTURE(message);
  REQUIRE_ALL_RANKS(contains(message, file) && contains(message, "truncated"));
  REQUIRE_ALL_RANKS(contains(damaged([&] { fs::resize_file(file, 0); }), "has 0 bytes"));
  for (const int part : {1, 2, 3}) {
    message =
        damaged([&] { flip_byte(file, fs::file_size(file) * static_cast<unsigned>(part) / 4); });
    REQUIRE_ALL_RANKS(contains(message, file) && contains(message, "was altered"));
  }
  message = damaged([&] { fs::remove(file); });
  REQUIRE_ALL_RANKS(contains(message, file) && contains(message, "missing"));
  message = damaged([&] { fs::remove(folder + "/manifest.json"); });
  REQUIRE_ALL_RANKS(contains(message, "manifest.json: cannot be read"));
  message = damaged([&] { fs::remove_all(folder); });
  REQUIRE_ALL_RANKS(contains(message, "manifest.json: cannot be read"));
}

TEST_CASE("a manifest that is cut or altered anywhere is refused") {
  const auto self = make_self_communicator();
  ProcessGrid grid(*self, 1, 1);
  const Scratch scratch;
  save(grid, scratch.path(), 1, 1);
  const std::string folder = checkpoint_folder(scratch.path(), 1);
  const std::string text = Scratch::read(folder + "/manifest.json");
  REQUIRE(read_checkpoint_meta(folder).step == 1);
  const auto is_refused = [&](const std::string& content) {
    std::ofstream(folder + "/manifest.json", std::ios::binary) << content;
    return contains(message_of<UserError>([&] { read_checkpoint_meta(folder); }),
                    folder + "/manifest.json: ");
  };
  // The last byte is a line feed.
  for (std::size_t length = 0; length + 1 < text.size(); length += 1 + length / 16) {
    CAPTURE(length);
    REQUIRE(is_refused(text.substr(0, length)));
  }
  for (std::size_t at = 0; at < text.size(); at += 29) {
    CAPTURE(at);
    std::string altered = text;
    altered[at] = static_cast<char>(altered[at] ^ 1);
    REQUIRE(is_refused(altered));
  }
  REQUIRE_FALSE(is_refused(text));
}

TEST_CASE("a checkpoint of another model is refused by name and shape") {
  ProcessGrid grid(mpi().world(), mpi().world_size(), 1);
  SharedFolder shared;
  save(grid, shared.run(), 1, 1);
  const std::string folder = checkpoint_folder(shared.run(), 1);
  ModelConfig model = small_model();
  model.vocab_size = 51;
  REQUIRE_ALL_RANKS(
      contains(load_error(grid, folder, model),
               "value/model.embed_tokens.weight is f32 (50, 8), this model's is f32 (51, 8)"));
  model = small_model();
  model.num_experts = 24;
  REQUIRE_ALL_RANKS(contains(load_error(grid, folder, model), "this model's is f32 (24, 8"));
  model = small_model();
  model.num_layers = 3;
  REQUIRE_ALL_RANKS(contains(load_error(grid, folder, model),
                             "holds no value/model.layers.2.input_layernorm.weight"));
  model = small_model();
  model.num_layers = 1;
  REQUIRE_ALL_RANKS(contains(load_error(grid, folder, model), "which this model does not have"));
}

TEST_CASE("an interrupted save is never loaded, and the next one clears it away") {
  ProcessGrid grid(mpi().world(), 1, 1);
  SharedFolder shared;
  REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()).empty());
  save(grid, shared.run(), 100, 1);
  on_root_between_barriers([&] {
    const std::string parent = shared.run() + "/checkpoints/";
    fs::copy(parent + "step-00000100", parent + ".step-00000200.partial");
    fs::copy(parent + "step-00000100", parent + "step-00000300");
    fs::remove(parent + "step-00000300/manifest.json");
    fs::copy(parent + "step-00000100", parent + "step-00000400.bak");
    std::ofstream(parent + "step-00000500") << "a file";
  });
  REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == checkpoint_folder(shared.run(), 100));
  mpi().world().barrier();
  save(grid, shared.run(), 300, 2);
  REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == checkpoint_folder(shared.run(), 300));
  REQUIRE_ALL_RANKS(entries_of(shared.run() + "/checkpoints") ==
                    std::vector<std::string>(
                        {"step-00000100", "step-00000300", "step-00000400.bak", "step-00000500"}));
  Tables tables(grid);
  load_checkpoint(latest_checkpoint(shared.run()), tables.table, grid, true);
  REQUIRE_ALL_RANKS(first_difference(tables.table, 2).empty());
}

TEST_CASE("a run whose only checkpoint lost its manifest does not start over") {
  ProcessGrid grid(mpi().world(), 1, 1);
  SharedFolder shared;
  save(grid, shared.run(), 100, 1);
  on_root_between_barriers(
      [&] { fs::remove(shared.run() + "/checkpoints/step-00000100/manifest.json"); });
  const std::string message = message_of<UserError>([&] { latest_checkpoint(shared.run()); });
  REQUIRE_ALL_RANKS(contains(message, "step-00000100: holds no manifest.json"));
}

TEST_CASE("a checkpoint of the same step is replaced as a whole") {
  ProcessGrid grid(mpi().world(), 1, 1);
  SharedFolder shared;
  save(grid, shared.run(), 9, 1);
  save(grid, shared.run(), 9, 2);
  REQUIRE_ALL_RANKS(entries_of(shared.run() + "/checkpoints") ==
                    std::vector<std::string>({"step-00000009"}));
  Tables tables(grid);
  load_checkpoint(checkpoint_folder(shared.run(), 9), tables.table, grid, true);
  REQUIRE_ALL_RANKS(first_difference(tables.table, 2).empty());
}

TEST_CASE("pruning keeps the highest steps") {
  const auto self = make_self_communicator();
  ProcessGrid grid(*self, 1, 1);
  const Scratch scratch;
  prune_checkpoints(scratch.path(), 1);
  for (const std::int64_t step : {5, 100000000, 90, 1000}) save(grid, scratch.path(), step, 1);
  prune_checkpoints(scratch.path(), 4);
  REQUIRE(entries_of(scratch.path("checkpoints")).size() == 4);
  prune_checkpoints(scratch.path(), 2);
  REQUIRE(entries_of(scratch.path("checkpoints")) ==
          std::vector<std::string>({"step-00001000", "step-100000000"}));
  REQUIRE(latest_checkpoint(scratch.path()) == checkpoint_folder(scratch.path(), 100000000));
}

TEST_CASE("a folder that cannot be written is an error on every rank") {
  ProcessGrid grid(mpi().world(), mpi().world_size(), 1);
  SharedFolder shared;
  const auto refusal = [&](const std::string& run) {
    return message_of<UserError>([&] { save(grid, run, 3, 1); });
  };
  on_root_between_barriers([&] {
    fs::create_directories(shared.run() + "/blocked");
    std::ofstream(shared.run() + "/blocked/checkpoints") << "a file";
    fs::create_directories(shared.run() + "/sealed/checkpoints");
    fs::permissions(shared.run() + "/sealed/checkpoints",
                    fs::perms::owner_read | fs::perms::owner_exec);
  });
  const std::string blocked = refusal(shared.run() + "/blocked");
  CAPTURE(blocked);
  REQUIRE_ALL_RANKS(contains(blocked, "checkpoint of step 3 was not saved") &&
                    contains(blocked, "/blocked/checkpoints"));
  if (geteuid() == 0) {
    WARN("running as root, for whom no folder is read-only: only the blocked path was tried");
    return;
  }
  REQUIRE_ALL_RANKS(contains(refusal(shared.run() + "/sealed"), "Permission denied"));
}

TEST_CASE(
    "a checkpoint in the background is of the moment it began, and there when it is complete") {
  for (const std::int64_t ep : {1, 2}) {
    if (mpi().world_size() % ep != 0) continue;
    ProcessGrid grid(mpi().world(), ep, 1);
    SharedFolder shared, other;
    save(grid, shared.run(), 1, 1);
    BackgroundTables tables(grid);
    tables.start(shared.run(), 2, 2);
    fill(tables.table, 3);  // training goes on
    REQUIRE_ALL_RANKS(tables.save->pending() == checkpoint_folder(shared.run(), 2));
    while (!tables.save->is_written()) {
    }
    REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == checkpoint_folder(shared.run(), 1));
    mpi().world().barrier();
    tables.save->finish();
    REQUIRE_ALL_RANKS(tables.save->pending().empty());
    REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == checkpoint_folder(shared.run(), 2));
    load_checkpoint(checkpoint_folder(shared.run(), 2), tables.table, grid, true);
    REQUIRE_ALL_RANKS(first_difference(tables.table, 2).empty());
    // The same bytes as from the ranks' own memory, manifest with its hashes included.
    save(grid, other.run(), 2, 2);
    const auto text_of = [](const std::string& run) {
      std::ifstream in(checkpoint_folder(run, 2) + "/manifest.json");
      return std::string(std::istreambuf_iterator<char>(in), {});
    };
    REQUIRE_ALL_RANKS(!text_of(other.run()).empty() &&
                      text_of(other.run()) == text_of(shared.run()));
    mpi().world().barrier();

    // A run that ends without waiting leaves what an interrupted one does.
    tables.start(shared.run(), 5, 5);
    tables.save.reset();
    REQUIRE_ALL_RANKS(latest_checkpoint(shared.run()) == checkpoint_folder(shared.run(), 2));
    mpi().world().barrier();
    save(grid, shared.run(), 6, 6);
    REQUIRE_ALL_RANKS(
        entries_of(shared.run() + "/checkpoints") ==
        std::vector<std::string>({"step-00000001", "step-00000002", "step-00000006"}));
  }
}

TEST_CASE(
    "a file that cannot grow on one rank is an error on every rank and leaves nothing behind") {
  const bool in_background = GENERATE(false, true);
  ProcessGrid grid(mpi().world(), mpi().world_size(), 1);
  SharedFolder shared;
  save(grid, shared.run(), 1, 1);
  const bool is_limited = grid.world_rank() == mpi().world_size() - 1;
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_IGN);
  if (is_limited) {
    const rlimit tight{4096, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &tight);
  }
  std::optional<BackgroundTables> tables;
  if (in_background) tables.emplace(grid);
  const std::string message = message_of<RuntimeFault>([&] {
    if (!in_background) return save(grid, shared.run(), 2, 2);
    tables->start(shared.run(), 2, 2);
    tables->save->finish();
  });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_DFL);
  CAPTURE(message);
  REQUIRE_ALL_RANKS(contains(message, "checkpoint of step 2 was not saved"));
  REQUIRE_ALL_RANKS(contains(message, concat("rank-0000", mpi().world_size() - 1, ".h5")));
  REQUIRE_ALL_RANKS(contains(message, "File too large"));
  mpi().world().barrier();
  REQUIRE_ALL_RANKS(entries_of(shared.run() + "/checkpoints") ==
                    std::vector<std::string>({"step-00000001"}));
  REQUIRE_ALL_RANKS(load_error(grid, checkpoint_folder(shared.run(), 1)).empty());
  // And once there is room, the same save works.
  save(grid, shared.run(), 2, 2);
  REQUIRE_ALL_RANKS(load_error(grid, checkpoint_folder(shared.run(), 2)).empty());
}

TEST_CASE("a full disk is an error on every rank and leaves nothing behind") {
  ProcessGrid grid(mpi().world(), 1, 1);
  SharedFolder shared;
  const std::string disk = shared.run() + "/disk";
  std::string mounted = "no";
  if (mpi().world_rank() == 0) {
    fs::create_directories(disk);
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=128k") == 0) mounted = "yes";
  }
  mpi().world().broadcast(mounted, 0);
  if (mounted == "no") {
    WARN("not permitted to mount a small tmpfs: a really full disk was not tried");
    return;
  }
  std::string message;
  std::int64_t saved = 0;
  while (message.empty() && saved < 20)
    message = message_of<RuntimeFault>([&] { save(grid, disk, ++saved, 1); });
  const std::string last = latest_checkpoint(disk);
  const std::string reload = last.empty() ? "" : load_error(grid, last);
  mpi().world().barrier();
  const auto left = entries_of(disk + "/checkpoints");
  mpi().world().barrier();
  if (mpi().world_rank() == 0) ::umount(disk.c_str());
  CAPTURE(message, saved);
  REQUIRE_ALL_RANKS(contains(message, "No space left on device"));
  REQUIRE_ALL_RANKS(saved > 1 && reload.empty());
  REQUIRE_ALL_RANKS(static_cast<std::int64_t>(left.size()) == saved - 1);
}

}  // namespace openmoe::test
