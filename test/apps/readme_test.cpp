// The README cannot drift: every command it shows names files, subcommands and options that exist.
#include <algorithm>
#include <iterator>
#include <sstream>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

// Lines of the README's sh blocks, split into words.
std::vector<std::vector<std::string>> readme_commands() {
  std::vector<std::vector<std::string>> commands;
  std::ifstream file(source_path("README.md"));
  bool in_block = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("```")) {
      in_block = line == "```sh";
    } else if (in_block) {
      std::istringstream words(line);
      commands.emplace_back(std::istream_iterator<std::string>(words),
                            std::istream_iterator<std::string>());
    }
  }
  return commands;
}

void check_files(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    const bool is_made_by_a_command = word.starts_with("runs/") || word.starts_with("build/");
    if (word.find('/') == std::string::npos || is_made_by_a_command) continue;
    INFO(word);
    CHECK(std::filesystem::exists(source_path(word.substr(0, word.find('*')))));
  }
}

void check_options(const std::vector<std::string>& words) {
  const auto program = std::find_if(words.begin(), words.end(), [](const std::string& word) {
    return word.ends_with("/openmoe");
  });
  if (program == words.end()) return;
  std::string command;
  auto word = program + 1;
  for (; word != words.end() && word->find_first_of("-/.") == std::string::npos; ++word)
    command += *word + " ";
  const CommandResult help = run_openmoe(1, command + "--help");
  REQUIRE(help.exit_code == 0);
  for (; word != words.end(); ++word) {
    if (!word->starts_with("--")) continue;
    INFO(command << *word);
    CHECK(help.output.find("  " + *word) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("every command of the README exists", "[readme]") {
  const auto commands = readme_commands();
  CHECK(commands.size() > 10);
  for (const auto& words : commands) {
    check_files(words);
    check_options(words);
  }
}

TEST_CASE("the README's parameter counts are those of the recipes", "[readme]") {
  std::ifstream file(source_path("README.md"));
  int rows = 0;
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("| `recipes/") || line.find('*') != std::string::npos) continue;
    const std::string recipe = line.substr(3, line.find('`', 3) - 3);
    const std::size_t last = line.rfind('|'), before = line.rfind('|', last - 1),
                      first = line.rfind('|', before - 1);
    const auto number = [](std::string text) {
      std::erase_if(text, [](char c) { return c == ',' || c == ' '; });
      return std::stoll(text);
    };
    const CommandResult plan = run_openmoe(1, "plan --json " + source_path(recipe));
    REQUIRE(plan.exit_code == 0);
    const auto parameters = nlohmann::json::parse(plan.output).at("parameters");
    INFO(line);
    CHECK(parameters.at("total") == number(line.substr(first + 1, before - first - 1)));
    CHECK(parameters.at("active") == number(line.substr(before + 1, last - before - 1)));
    ++rows;
  }
  CHECK(rows == 7);
}

}  // namespace openmoe::test
