// Recipe files: what is accepted, what each mistake is answered with, and the numbers that follow
// from a recipe.
#include <filesystem>
#include <fstream>

#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

// A recipe without mistakes, with one place for more keys.
std::string recipe_text(const std::string& more = "") {
  return R"({"name": "r", "data": {"sequence_length": 64, "batch_rows": 4, "phases": [
    {"objective": "ul2", "mixture": "m1", "until_step": 10},
    {"objective": "causal_lm", "mixture": "m2"}]},
    "routing": {"group_tokens": 64}, "run": {"num_steps": 20})" +
         (more.empty() ? "" : ", " + more) + "}";
}

class RecipeFolder {
 public:
  std::string write(const std::string& name, const std::string& text) {
    write_file(folder_ / name, text);
    return folder_ / name;
  }
  std::string path(const std::string& name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
};

template <typename Action>
std::string user_error_of(Action&& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

std::string load_error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  RecipeFolder folder;
  const std::string path = folder.write("r.json", text);
  return user_error_of([&] { load_recipe(path, overrides); });
}

void check_has(const std::string& text, const std::vector<std::string>& phrases) {
  INFO(text);
  for (const std::string& phrase : phrases) {
    INFO("phrase: " << phrase);
    CHECK(text.find(phrase) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("a recipe that states little gets the released defaults", "[config]") {
  const Recipe recipe = parse_recipe(recipe_text(), "r.json");
  CHECK(recipe.name == "r");
  CHECK(recipe.model.vocab_size == 256384);
  CHECK(recipe.model.ffn == FfnKind::gated_swiglu);
  CHECK(recipe.model.residual_ffn == ResidualFfn::sequential);
  CHECK(recipe.loss.logits_z_weight == 1e-4);
  CHECK(recipe.optimizer.epsilon_square == 1e-30);
  REQUIRE(recipe.data.phases.size() == 2);
  CHECK(recipe.data.phases[0].objective == ObjectiveKind::ul2);
  CHECK(recipe.data.phases[1].mixture == "m2");
}

TEST_CASE("every mistake of a file is named at once", "[config]") {
  const std::string error = load_error(recipe_text(
      R"("model": {"num_layrs": 3, "head_dim": 63, "ffn": "swigl", "d_model": 1.5, "group_tokens": 7,
                  "norm_eps": 0, "tied_embedding": 1, "num_experts": 1},
         "loss": [1], "seed": 7, "optimizer": {"warmup_steps": "many"})"));
  check_has(error,
            {"has 11 errors:",
             "r.json: model.num_layrs: unknown key (its value is 3); did you mean model.num_layers",
             "model.head_dim: found 63, allowed: an even number", "nearest: 62 or 64",
             R"(model.ffn: found "swigl", allowed: one of "gated_swiglu", "swiglu")",
             "model.d_model: found 1.5, allowed: an integer from 1 to 131072",
             "model.group_tokens: unknown key (its value is 7); did you mean routing.group_tokens",
             "model.norm_eps: found 0, allowed: a number above 0",
             "model.tied_embedding: found 1, allowed: true or false",
             "model.num_experts: found 1, allowed: an integer from 2 to 4096",
             "loss: found a list of 1 elements, allowed: an object",
             "seed: unknown key (its value is 7); did you mean run.seed",
             R"(optimizer.warmup_steps: found "many", allowed: an integer from 1)"});
}

TEST_CASE("repeated keys are mistakes, at any depth", "[config]") {
  check_has(load_error(recipe_text(R"("run": {"seed": 1})")),
            {"run: this key stands more than once"});
  check_has(
      load_error(R"({"data": {"phases": [{"objective": "ul2", "mixture": "a", "until_step": 1},
                          {"objective": "ul2", "mixture": "a", "mixture": "b"}]}})"),
      {"data.phases[1].mixture: this key stands more than once"});
}

TEST_CASE("a syntax error is named by line and column", "[config]") {
  check_has(load_error("{\"name\": \"r\",\n  \"run\": }"),
            {"r.json:2:10: not valid JSON", "unexpected '}'"});
  check_has(load_error(""), {"r.json:1:1: not valid JSON"});
  check_has(load_error("{\"name\": \"r\"} x"), {"r.json:1:15: not valid JSON"});
  check_has(load_error("{\"run\": {\"seed\": 1e999}}"),
            {"r.json: not valid JSON: number overflow"});
  check_has(load_error("[]"), {"found a list of 0 elements, allowed: an object"});
}

TEST_CASE("missing files and folders are named", "[config]") {
  RecipeFolder folder;
  check_has(user_error_of([&] { load_recipe(folder.path("none.json")); }),
            {"none.json: there is no such file"});
  check_has(user_error_of([&] { load_recipe(folder.path("")); }), {"is a folder"});
}

TEST_CASE("fields that contradict each other are named with a way out", "[config]") {
  check_has(load_error(recipe_text(R"("model": {"num_layers": 2, "moe_interval": 3})")),
            {"model.moe_interval: found 3, allowed: 0 (dense model) to model.num_layers (2)"});
  check_has(load_error(recipe_text(), {"routing.group_tokens=100"}),
            {"data.batch_rows: found 4 rows = 256 positions",
             "a multiple of routing.group_tokens (100)", "64 or 128"});
  check_has(load_error(recipe_text(), {"parallel.micro_batch_rows=3", "routing.group_tokens=128"}),
            {"parallel.micro_batch_rows: found 3 rows = 192 positions"});
  check_has(
      load_error(recipe_text(), {"parallel.ep=3"}),
      {"parallel.ep: found 3, allowed: a divisor of model.num_experts (16); nearest: 2 or 4"});
  check_has(load_error(recipe_text(), {"data.sequence_length=63", "model.moe_interval=0"}),
            {"data.sequence_length: found 63, allowed: an even number"});
  check_has(load_error(recipe_text(), {"model.parallel_block=true"}),
            {"model.residual_ffn: found sequential, allowed with model.parallel_block: parallel"});
  CHECK(parse_recipe(recipe_text(R"("model": {"parallel_block": true, "moe_interval": 0})"), "r")
            .model.parallel_block);
}

TEST_CASE("the key that parallel.recompute was before is still read", "[config]") {
  const auto read = [](const std::string& parallel) {
    return parse_recipe(recipe_text(R"("parallel": )" + parallel), "r").parallel.recompute;
  };
  CHECK(read(R"({"recompute_ffn": true})") == Recompute::ffn);
  CHECK(read(R"({"recompute_ffn": false})") == Recompute::none);
  CHECK(read(R"({"recompute": "block"})") == Recompute::block);
  check_has(load_error(recipe_text(), {"parallel.recompute=all"}),
            {"parallel.recompute: found \"all\"", "\"ffn\", \"attention\", \"block\""});
  check_has(load_error(recipe_text(R"("parallel": {"recompute_ffn": 1})")),
            {"parallel.recompute_ffn: unknown key", "did you mean parallel.recompute"});
}

TEST_CASE("run.attention has three spellings and is auto unless stated", "[config]") {
  const auto read = [](const std::string& value) {
    RecipeFolder folder;
    return load_recipe(folder.write("r.json", recipe_text()), {"run.attention=" + value})
        .run.attention;
  };
  CHECK(parse_recipe(recipe_text(), "r").run.attention == AttentionKind::automatic);
  CHECK(read("auto") == AttentionKind::automatic);
  CHECK(read("cudnn") == AttentionKind::cudnn);
  CHECK(read("builtin") == AttentionKind::builtin);
  check_has(load_error(recipe_text(), {"run.attention=flash"}),
            {"run.attention: found \"flash\"", "\"auto\", \"cudnn\", \"builtin\""});
}

TEST_CASE("ways of updating that exclude each other are refused", "[config]") {
  const std::string in_backward = "parallel.update_in_backward=true",
                    sharded = "parallel.shard_update=true",
                    bucketed = "parallel.reduction_bucket_kb=64";
  check_has(
      load_error(recipe_text(), {in_backward, bucketed}),
      {"parallel.reduction_bucket_kb: found 64, allowed: 0, since parallel.update_in_backward",
       "set that to false, or this to 0"});
  check_has(load_error(recipe_text(), {in_backward, sharded}),
            {"parallel.shard_update: found true, allowed: false, since "
             "parallel.update_in_backward"});
  check_has(load_error(recipe_text(), {sharded, bucketed}),
            {"parallel.shard_update: found true, allowed: false, since "
             "parallel.reduction_bucket_kb"});
}

TEST_CASE("a dense model needs no routing groups", "[config]") {
  CHECK(load_error(recipe_text(), {"routing.group_tokens=100", "model.moe_interval=0",
                                   "parallel.ep=3"}) == "no error");
}

TEST_CASE("the schedule of phases must be sound", "[config]") {
  const auto phases = [](const std::string& list) {
    return R"({"data": {"phases": [)" + list + "]}}";
  };
  check_has(load_error("{}"), {"data.phases: found no phase, allowed: at least one"});
  check_has(load_error(phases(R"({"objective": "ul2"})")), {"data.phases[0].mixture: is missing"});
  check_has(load_error(phases(R"({"objective": "ul2", "mixture": "../m"})")),
            {R"(data.phases[0].mixture: found "../m", allowed: the name of a mixture file)"});
  check_has(load_error(phases(R"({"objective": "ul2", "mixture": "m.json"})")),
            {"without folder and .json"});
  check_has(load_error(phases(
                R"({"objective": "ul2", "mixture": "m"}, {"objective": "ul2", "mixture": "m"})")),
            {"data.phases[0]: has neither until_step nor until_positions"});
  check_has(load_error(recipe_text(), {"data.phases.0.until_positions=5"}),
            {"data.phases[0]: has both until_step (10) and until_positions (5)"});
  check_has(
      load_error(recipe_text(), {R"(data.phases=[{"objective":"ul2","mixture":"m","until_step":9},
              {"objective":"ul2","mixture":"m","until_step":9},{"objective":"ul2","mixture":"m"}])"}),
      {"data.phases[1]: ends at step 9 but starts at step 9"});
  check_has(load_error(recipe_text(), {"data.phases.1.until_step=15"}),
            {"data.phases[1]: ends at step 15 but run.num_steps is 20"});
}

TEST_CASE("overrides reach every key, and their mistakes are named", "[config]") {
  RecipeFolder folder;
  const std::string path = folder.write("r.json", recipe_text());
  const Recipe recipe =
      load_recipe(path, {"run.seed=7", "model.ffn=swiglu", "name=\"quoted\"", "model.norm_eps=1e-5",
                         "data.phases.1.mixture=other", "run={\"log_every\": 3}",
                         "loss.router_z_weight=0", "run.num_steps=2e1"});
  CHECK(recipe.run.seed == 7);
  CHECK(recipe.run.log_every == 3);
  CHECK(recipe.run.num_steps == 20);
  CHECK(recipe.model.ffn == FfnKind::swiglu);
  CHECK(recipe.name == "quoted");
  CHECK(recipe.model.norm_eps == 1e-5);
  CHECK(recipe.data.phases[1].mixture == "other");
  CHECK(recipe.data.phases[0].mixture == "m1");
  CHECK(recipe.loss.router_z_weight == 0.0);

  check_has(load_error(recipe_text(), {"run.sead=7"}),
            {"--set run.sead=7: run.sead: unknown key", "did you mean run.seed"});
  check_has(load_error(recipe_text(), {"run.seed"}),
            {"--set run.seed: allowed: path.to.key=value"});
  check_has(load_error(recipe_text(), {"=3"}), {"--set =3: allowed: path.to.key=value"});
  check_has(load_error(recipe_text(), {"run.seed=x"}),
            {R"(run.seed: found "x", allowed: an integer of at least 0)"});
  check_has(load_error(recipe_text(), {"run.seed=1", "run.seed=2"}), {"run.seed: is set twice"});
  check_has(load_error(recipe_text(), {"data.phases.2.mixture=x"}),
            {"data.phases: found index 2, allowed: 0 to 1"});
  check_has(load_error(recipe_text(), {"..=1"}), {"unknown key"});
  check_has(load_error(recipe_text(), {"extends=x.json"}), {"extends: unknown key"});
}

TEST_CASE("a recipe extends another key by key", "[config]") {
  RecipeFolder folder;
  folder.write("base.json",
               recipe_text(R"("description": "base", "model": {"num_layers": 8, "d_model": 64})"));
  const Recipe recipe = load_recipe(
      folder.write("leaf.json", R"({"extends": "base.json", "model": {"num_layers": 4}})"));
  CHECK(recipe.name == "leaf");
  CHECK(recipe.description == "Changes of: base");
  CHECK(recipe.model.num_layers == 4);
  CHECK(recipe.model.d_model == 64);
  CHECK(recipe.data.phases.size() == 2);

  check_has(
      user_error_of([&] { load_recipe(folder.write("a.json", R"({"extends": "nowhere.json"})")); }),
      {"a.json: extends: found \"nowhere.json\", but there is no file"});
  check_has(user_error_of([&] { load_recipe(folder.write("b.json", R"({"extends": 3})")); }),
            {"b.json: extends: found 3, allowed: the path of a recipe file"});
  folder.write("c1.json", R"({"extends": "c2.json"})");
  check_has(
      user_error_of([&] { load_recipe(folder.write("c2.json", R"({"extends": "c1.json"})")); }),
      {"extends: the files extend each other in a circle"});
  folder.write("wrong.json", recipe_text(R"("model": {"num_layers": -1})"));
  check_has(
      user_error_of([&] {
        load_recipe(folder.write("d.json", R"({"extends": "wrong.json", "modle": {}})"));
      }),
      {"has 2 errors", "wrong.json: model.num_layers: found -1", "d.json: modle: unknown key"});
}

TEST_CASE("a printed recipe reads back as it was", "[config]") {
  const Recipe recipe = parse_recipe(
      recipe_text(
          R"("model": {"norm_eps": 1.2345678901234567e-7, "ffn": "swiglu"}, "description": "a \"b\"\n\u00e9")"),
      "r");
  const std::string text = to_json(recipe);
  const Recipe again = parse_recipe(text, "printed");
  CHECK(to_json(again) == text);
  CHECK(again.model.norm_eps == recipe.model.norm_eps);
  CHECK(again.description == recipe.description);
  const std::string reference = recipe_key_reference();
  for (const char* key :
       {"extends", "model.vocab_size", "data.phases[].until_positions", "run.keep_checkpoints"})
    CHECK(reference.find(std::string(key) + "\n") != std::string::npos);
}

TEST_CASE("phases begin where the one before ends", "[config]") {
  Recipe recipe = parse_recipe(recipe_text(), "r");
  CHECK(first_step_of_phase(recipe, 0) == 0);
  CHECK(first_step_of_phase(recipe, 1) == 10);
  CHECK(phase_at(recipe, 9) == 0);
  CHECK(phase_at(recipe, 10) == 1);
  CHECK(phase_at(recipe, 1000000) == 1);
  recipe.data.phases[0].until_step = 0;
  recipe.data.phases[0].until_positions =
      256 * 3 + 1;  // 4 x 64 positions a step: the started step belongs to the phase
  CHECK(first_step_of_phase(recipe, 1) == 4);
}

TEST_CASE("expert capacity rounds half to even, as the reference does", "[config]") {
  RoutingConfig routing;
  CHECK(routing.capacity(16, true) == 320);
  CHECK(routing.capacity(32, true) == 160);
  CHECK(routing.capacity(32, false) == 256);
  routing.capacity_counts = CapacityCounts::assignments;
  CHECK(routing.capacity(32, true) == 320);
  routing = {.group_tokens = 20, .capacity_factor = 1.25, .min_capacity = 1};
  CHECK(routing.capacity(10, true) == 2);  // 2.5
  routing.group_tokens = 28;
  CHECK(routing.capacity(10, true) == 4);  // 3.5
  routing.capacity_counts = CapacityCounts::assignments;
  CHECK(routing.capacity(10, true) == 7);  // the factor 2 comes before the rounding
  routing.min_capacity = 9;
  CHECK(routing.capacity(10, true) == 9);
  routing.capacity_counts = CapacityCounts::dropless;
  routing.min_capacity = 100;
  for (const bool training : {true, false}) CHECK(routing.capacity(10, training) == 28);
}

TEST_CASE("every shipped recipe loads and describes itself", "[config]") {
  int count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source_path("recipes"))) {
    const std::string path = entry.path().string();
    const std::string folder = entry.path().parent_path().filename().string();
    const bool is_recipe = folder != "mixtures" && folder != "tasks" && folder != "machines";
    if (entry.path().extension() != ".json" || !is_recipe) continue;
    INFO(path);
    const Recipe recipe = load_recipe(path);
    CHECK(recipe.description.size() > 80);
    CHECK(recipe.description.find("Changes of") == std::string::npos);
    for (const PhaseConfig& phase : recipe.data.phases)
      CHECK(std::filesystem::exists(source_path("recipes/mixtures/" + phase.mixture + ".json")));
    ++count;
  }
  CHECK(count >= 11);
}

TEST_CASE("the schedules of the paper's models", "[config]") {
  const Recipe paper = load_recipe(source_path("recipes/openmoe-8b.json"));
  CHECK(paper.data.batch_rows * paper.data.sequence_length == 2097152);
  CHECK(first_step_of_phase(paper, 1) == 371933);  // 780e9 / 2097152, rounded up
  CHECK(paper.data.phases[1].mixture == "openmoe-v2");
  const Recipe released = load_recipe(source_path("recipes/released/openmoe-8b.json"));
  CHECK(first_step_of_phase(released, 1) == 390000);
  CHECK(released.routing.capacity(released.model.num_experts, true) == 160);
  const Recipe large = load_recipe(source_path("recipes/openmoe-34b.json"));
  CHECK(first_step_of_phase(large, 1) == 25000);
  CHECK(large.data.phases[0].mixture == "openmoe-v3");
  CHECK(large.data.phases[1].objective == ObjectiveKind::causal_lm);
}

}  // namespace openmoe::test
