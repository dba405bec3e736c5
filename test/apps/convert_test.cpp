// openmoe convert without Python: identity of export and import, what cannot be said in the Hugging
// Face layout, and the command line. Conversion against the real libraries is in test/python.
#include "apps/convert.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "apps/checkpoint.h"
#include "apps/hf_config.h"
#include "apps/hf_weights.h"
#include "apps/network.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "core/cpu/cpu_ops.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

Recipe small_recipe() {
  Recipe recipe;
  recipe.name = "small";
  recipe.model.vocab_size = 50;
  recipe.model.num_layers = 2;
  recipe.model.d_model = 12;
  recipe.model.num_heads = 2;
  recipe.model.head_dim = 6;
  recipe.model.ffn_dim = 10;
  recipe.model.num_experts = 3;
  recipe.model.moe_interval = 2;
  recipe.data.sequence_length = 16;
  recipe.data.batch_rows = 4;
  recipe.routing.group_tokens = 32;
  PhaseConfig phase;
  phase.objective = ObjectiveKind::causal_lm;
  phase.packing = Packing::packed;
  phase.mixture = "quickstart";
  recipe.data.phases = {phase};
  return recipe;
}

// Every parameter of a checkpoint, one after the other; random when made anew.
class SmallModel {
 public:
  explicit SmallModel(const Recipe& recipe)
      : recipe_(recipe),
        grid_(*world_, 1, 1),
        ops_(make_cpu_ops()),
        network_(*ops_, grid_, recipe, 2, false) {}

  void initialize() { network_.params().initialize(*ops_, 3); }
  void save(const std::string& run) {
    std::filesystem::create_directories(run);
    save_checkpoint(checkpoint_folder(run, 7), network_.params(),
                    {7, 448, to_json(recipe_), "some data"}, grid_);
  }
  void load(const std::string& run) {
    load_checkpoint(latest_checkpoint(run), network_.params(), grid_, false);
  }
  std::vector<float> values(const std::string& name) {
    const Tensor value = network_.params().find(name).value;
    return {value.as<float>(), value.as<float>() + value.num_elements()};
  }
  std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const Param& param : network_.params().params()) all.push_back(param.name);
    return all;
  }

 private:
  Recipe recipe_;
  std::unique_ptr<Communicator> world_ = make_self_communicator();
  ProcessGrid grid_;
  std::unique_ptr<Ops> ops_;
  Network network_;
};

json read_json(const std::string& path) {
  return json::parse(std::ifstream(path));
}

}  // namespace

TEST_CASE("convert: export then import gives the same bits in both layouts", "[convert]") {
  const TemporaryFolder folder;
  SmallModel original(small_recipe());
  original.initialize();
  original.save(folder / "run");
  int number = 0;
  for (const HfLayout layout : {HfLayout::stacked, HfLayout::split}) {
    const std::string hf = folder / ("hf" + std::to_string(number)),
                      back = folder / ("back" + std::to_string(number));
    ++number;
    export_hf({.from = folder / "run",
               .to = hf,
               .layout = layout,
               .max_file_bytes = 4000,
               .tokenizer = ""});
    import_hf({hf, back, {}});
    SmallModel again(small_recipe());
    again.load(back);
    for (const std::string& name : original.names()) {
      INFO(name);
      CHECK(again.values(name) == original.values(name));
    }
  }
  HfWeights split(folder / "hf1");
  REQUIRE(split.find("model.layers.1.mlp.experts.2.down_proj.weight") != nullptr);
  CHECK(split.find("model.layers.1.mlp.experts.2.down_proj.weight")->shape ==
        std::vector<std::int64_t>{12, 10});
  // wo of expert 2 is (10, 12); element (i, j) of the exported one is (j, i) of it.
  std::vector<float> down(120);
  split.read_rows("model.layers.1.mlp.experts.2.down_proj.weight", 0, 12, down.data());
  const auto wo = original.values("model.layers.1.mlp.experts.wo");
  CHECK(down[5 * 10 + 3] == wo[2 * 120 + 3 * 12 + 5]);
}

TEST_CASE("convert: the recipe of an import is that of the model", "[convert]") {
  const TemporaryFolder folder;
  Recipe recipe = small_recipe();
  recipe.model.ffn = FfnKind::swiglu;
  recipe.model.tied_embedding = true;
  recipe.model.rope_base = 5000.0;
  recipe.routing.eval_capacity_factor = 1.5;
  SmallModel model(recipe);
  model.initialize();
  model.save(folder / "run");
  export_hf({.from = folder / "run", .to = folder / "hf"});
  import_hf({folder / "hf", folder / "back", {"routing.capacity_counts=port", "run.num_steps=5"}});
  const json ours = json::parse(to_json(recipe)), theirs = read_json(folder / "back/recipe.json");
  CHECK(theirs.at("model") == ours.at("model"));
  CHECK(theirs.at("routing").at("eval_capacity_factor") == 1.5);
  CHECK(theirs.at("routing").at("capacity_counts") == "port");
  CHECK(theirs.at("data").at("sequence_length") == 16);
  CHECK(theirs.at("run").at("num_steps") == 5);
  CHECK(json::parse(read_checkpoint_meta(latest_checkpoint(folder / "back")).recipe_json) ==
        theirs);
}

TEST_CASE("convert: the division by sqrt(Dh) goes into the query weights", "[convert]") {
  const TemporaryFolder folder;
  Recipe recipe = small_recipe();
  recipe.model.attention_scale = AttentionScale::rsqrt;
  SmallModel model(recipe);
  model.initialize();
  model.save(folder / "run");
  export_hf({.from = folder / "run", .to = folder / "hf"});
  HfWeights weights(folder / "hf");
  for (const std::string name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"}) {
    std::vector<float> exported(144);
    weights.read_rows(name, 0, 12, exported.data());
    const float factor = name.find("q_proj") != std::string::npos ? 1.0f / std::sqrt(6.0f) : 1.0f;
    const auto values = model.values(name);
    for (std::size_t i = 0; i < exported.size(); ++i)
      CHECK(exported[i] == Approx(values[i] * factor).epsilon(1e-6));
  }
}

TEST_CASE("convert: what the port cannot compute is refused", "[convert]") {
  const TemporaryFolder folder;
  Recipe recipe = small_recipe();
  recipe.model.residual_ffn = ResidualFfn::parallel;
  SmallModel model(recipe);
  model.initialize();
  model.save(folder / "run");
  const std::string text =
      message_of<UserError>([&] { export_hf({.from = folder / "run", .to = folder / "hf"}); });
  CHECK(contains(text, "residual_ffn"));
  CHECK(!std::filesystem::exists(folder / "hf"));
  recipe = small_recipe();
  recipe.routing.normalize_gates = true;
  CHECK(contains(not_in_hf_config(recipe), "normalize_gates"));
  recipe = small_recipe();
  recipe.model.parallel_block = true;
  CHECK(contains(not_in_hf_config(recipe), "parallel_block"));
  recipe.model.parallel_block = false;
  recipe.model.moe_interval = 0;
  CHECK(not_in_hf_config(recipe).empty());
}

TEST_CASE("convert: an altered checkpoint is not exported", "[convert]") {
  const TemporaryFolder folder;
  SmallModel model(small_recipe());
  model.initialize();
  model.save(folder / "run");
  const std::string file = latest_checkpoint(folder / "run") + "/rank-00000.h5";
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(4000).put('x').put('y');
  const std::string text =
      message_of<UserError>([&] { export_hf({.from = folder / "run", .to = folder / "hf"}); });
  CHECK(contains(text, "rank-00000.h5"));
  CHECK(contains(text, "altered"));
  CHECK(!std::filesystem::exists(folder / "hf"));
}

TEST_CASE("convert: a tied head must be the embedding", "[convert]") {
  const TemporaryFolder folder;
  SmallModel model(small_recipe());  // embedding and head differ
  model.initialize();
  model.save(folder / "run");
  export_hf({.from = folder / "run", .to = folder / "hf"});
  json config = read_json(folder / "hf/config.json");
  config["tie_word_embeddings"] = true;
  write_file(folder / "hf/config.json", config.dump());
  CHECK(contains(message_of<UserError>([&] {
                   import_hf({folder / "hf", folder / "back", {}});
                 }),
                 "differs from the embedding"));
  CHECK(!std::filesystem::exists(folder / "back"));
}

TEST_CASE("convert: an index and its files must agree", "[convert]") {
  const TemporaryFolder folder;
  SmallModel model(small_recipe());
  model.initialize();
  model.save(folder / "run");
  export_hf({.from = folder / "run", .to = folder / "hf", .max_file_bytes = 4000});
  const std::string path = folder / "hf/model.safetensors.index.json";
  const json good = read_json(path);
  const auto refusal = [&](const json& index) {
    write_file(path, index.dump());
    return message_of<UserError>([&] { HfWeights weights(folder / "hf"); });
  };
  CHECK(refusal(good).empty());
  json bad = good;
  bad["weight_map"].erase("model.norm.weight");
  CHECK(contains(refusal(bad), "\"model.norm.weight\" is not in the index"));
  bad = good;
  bad["weight_map"]["model.phantom"] = good["weight_map"]["model.norm.weight"];
  CHECK(contains(refusal(bad), "\"model.phantom\" is not in"));
  bad = good;
  bad["weight_map"]["model.norm.weight"] = "nowhere.safetensors";
  CHECK(contains(refusal(bad), "nowhere.safetensors"));
  bad = good;
  bad["weight_map"]["model.norm.weight"] = 3;
  CHECK(contains(refusal(bad), "name of a file"));
  CHECK(contains(refusal(json::array()), "weight_map"));
}

TEST_CASE("convert: the command line", "[convert]") {
  const TemporaryFolder folder;
  SmallModel model(small_recipe());
  model.initialize();
  model.save(folder / "run");
  write_file(folder / "vocab.model", "pieces");
  const auto convert = [&](int ranks, const std::string& arguments) {
    return run_openmoe(ranks, "convert " + arguments);
  };
  const auto refuse = [&](const std::string& arguments, const std::string& phrase) {
    const CommandResult result = convert(1, arguments);
    INFO(arguments << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, phrase));
  };
  const std::string run = folder / "run";
  const CommandResult exported =
      convert(2, run + " " + (folder / "hf") + " --dtype bf16 --max-file-size 1KiB --tokenizer " +
                     (folder / "vocab.model"));
  INFO(exported.output);
  CHECK(exported.exit_code == 0);
  CHECK(std::filesystem::exists(folder / "hf/vocab.model"));
  CHECK(std::filesystem::exists(folder / "hf/model.safetensors.index.json"));
  refuse(run + " " + (folder / "x") + " --set run.num_steps=1", "--set");
  refuse(run + " " + (folder / "x") + " --max-file-size 1parsec", "parsec");
  refuse(run + " " + (folder / "x") + " --dtype f64", "f64");
  refuse((folder / "hf") + " " + (folder / "x") + " --dtype f32", "--dtype");
  refuse((folder / "hf") + " " + (folder / "x") + " --set model.num_heds=1", "num_heads");
  refuse((folder / "nowhere") + " " + (folder / "x"), "nowhere");
  refuse((folder / "hf") + " /proc/nowhere/x", "/proc/nowhere");
}

TEST_CASE("capacity of the port: floor, made even, over the whole call", "[capacity]") {
  Recipe recipe = small_recipe();
  recipe.routing.capacity_counts = CapacityCounts::port;
  recipe.routing.eval_capacity_factor = 2.0;
  const auto slots = [&](std::int64_t tokens, std::int64_t experts) {
    return recipe.routing.of_call(tokens).capacity(experts, false);
  };
  CHECK(slots(2048, 32) == 256);  // 2 * 2.0 * 2048 / 32
  CHECK(slots(37, 16) == 10);     // 9.25 -> 9 -> 10
  CHECK(slots(41, 16) == 10);     // 10.25 -> 10
  CHECK(slots(1, 32) == 4);       // min_capacity
  CHECK(recipe.routing.of_call(100).group_tokens == 100);
  recipe.routing.capacity_counts = CapacityCounts::tokens;
  CHECK(recipe.routing.of_call(100).group_tokens == recipe.routing.group_tokens);
}

}  // namespace openmoe::test
