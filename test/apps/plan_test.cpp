// openmoe plan: the numbers of the published models, and memory that follows the grid.
#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

json plan(const std::string& recipe, const std::string& more = "") {
  const CommandResult result = run_openmoe(1, "plan " + source_path(recipe) + " --json " + more);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return json::parse(result.output);
}

// 1234567 -> "1,234,567"
std::string with_commas(std::int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<std::size_t>(at), ",");
  return text;
}

}  // namespace

TEST_CASE("plan counts the parameters of the released and of the paper's models", "[plan]") {
  struct Expected {
    const char* recipe;
    std::int64_t total, active;
  };
  const Expected models[] = {
      {"recipes/released/openmoe-base.json", 799663104, 141616128},
      {"recipes/released/openmoe-8b.json", 11855046656, 2751834112},
      {"recipes/released/openmoe-34b.json", 46270737408, 8456727552},
      {"recipes/openmoe-base.json", 649943808, 155769600},    // Table 11: 650M
      {"recipes/openmoe-8b.json", 8779827200, 2214955008},    // 8.7B
      {"recipes/openmoe-34b.json", 34611465216, 6644763648},  // 34B
  };
  for (const Expected& model : models) {
    INFO(model.recipe);
    const json parameters = plan(model.recipe).at("parameters");
    CHECK(parameters.at("total").get<std::int64_t>() == model.total);
    CHECK(parameters.at("active").get<std::int64_t>() == model.active);
    std::ifstream file(source_path(model.recipe));
    const std::string description = json::parse(file).at("description");
    CHECK(description.find(with_commas(model.total) + " parameters") != std::string::npos);
    CHECK(description.find(with_commas(model.active) + " active") != std::string::npos);
  }
  // The embedding counts once where it is tied, twice with a head of its own.
  CHECK(plan("recipes/openmoe-base.json").at("parameters").at("active_with_embedding") ==
        155769600 + 256384LL * 768);
  CHECK(plan("recipes/released/openmoe-base.json").at("parameters").at("active_with_embedding") ==
        141616128 + 2 * 256384LL * 768);
}

TEST_CASE("plan sizes the memory of a rank without having its grid", "[plan]") {
  const json alone = plan("test/recipes/tiny-released.json").at("memory");
  const json shared = plan("test/recipes/tiny-released.json", "--ep 2 --ranks 4").at("memory");
  std::int64_t sum = 0;
  for (const auto& item : alone.items())
    if (item.key() != "total") sum += item.value().get<std::int64_t>();
  CHECK(sum == alone.at("total").get<std::int64_t>());
  // One MoE layer of 4 experts with 4 * 32 * 48 values: ep = 2 leaves half of them.
  const std::int64_t expert_bytes = 4 * 4 * 32 * 48 * 4;
  for (const char* category : {"parameters", "gradients"})
    CHECK(alone.at(category).get<std::int64_t>() - shared.at(category).get<std::int64_t>() ==
          expert_bytes / 2);
  CHECK(shared.at("exchange").get<std::int64_t>() > 0);
  CHECK(shared.at("activations").get<std::int64_t>() < alone.at("activations").get<std::int64_t>());
}

TEST_CASE("plan follows overrides and refuses grids that do not fit", "[plan]") {
  const json small =
      plan("recipes/quickstart.json", "--set model.num_layers=2 --set model.moe_interval=0");
  const std::int64_t layer = 4 * 128 * 128 + 4 * 128 * 384 + 2 * 128;
  CHECK(small.at("parameters").at("total") == 2 * 8192 * 128 + 2 * layer + 128);
  for (const char* grid : {"--ep 3 --ranks 3", "--ep 2 --ranks 3", "--ranks 32"}) {
    const CommandResult result =
        run_openmoe(1, "plan " + source_path("recipes/quickstart.json ") + grid);
    INFO(grid << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find("openmoe: error: ") == 0);
  }
}

TEST_CASE("plan prints one table whatever the number of ranks", "[plan]") {
  const CommandResult result =
      run_openmoe(2, "plan " + source_path("recipes/quickstart.json") + " --ep 2");
  INFO(result.output);
  CHECK(result.exit_code == 0);
  const std::size_t first = result.output.find("parameters of the model");
  CHECK(first != std::string::npos);
  CHECK(result.output.find("parameters of the model", first + 1) == std::string::npos);
  CHECK(result.output.find("2 ranks = dp 1 x ep 2") != std::string::npos);
}

}  // namespace openmoe::test
