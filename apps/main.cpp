// openmoe: command line, and the one place where a job ends.
//
// Exit codes: 0 success, 1 a fault, 2 wrong input, 85 saved and to be queued again (train). A
// failure that all ranks meet alike is printed once, by rank 0. A rank that fails alone waits
// briefly for the others, then prints and ends the whole job, so that nobody waits for it for ever.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <iostream>
#include <string>

#include "apps/command.h"
#include "apps/threads.h"
#include "core/base/error.h"
#include "parallel/job.h"
#include "parallel/last_words.h"
#include "parallel/mpi_environment.h"

namespace openmoe {
namespace {

struct Outcome {
  int exit_code = kExitSuccess;
  std::string message;
};

// Parses the command line and runs the chosen subcommand.
int run_command(int argc, char** argv, MpiEnvironment& mpi) {
  const bool is_root = mpi.world_rank() == 0;
  std::string command_line;
  for (int i = 0; i < argc; ++i) command_line += std::string(i > 0 ? " " : "") + argv[i];
  CommandContext context{mpi, {}, 1, command_line};
  int threads = 0;
  CLI::App app("Pretrain OpenMoE-style mixture-of-experts language models, alone or under mpirun.",
               "openmoe");
  app.set_version_flag("--version", std::string("openmoe ") + OPENMOE_VERSION);
  app.add_option(
         "--threads", threads,
         "threads of this rank; default: OMP_NUM_THREADS, else its share of the host's cores")
      ->check(CLI::Range(1, 4096));
  app.require_subcommand(1);
  register_train(app, context);
  register_prepare(app, context);
  register_data(app, context);
  register_plan(app, context);
  register_convert(app, context);
  register_evaluate(app, context);
  register_analyze(app, context);
  register_generate(app, context);
  register_serve(app, context);
  register_selftest(app, context);
  register_bench(app, context);
  register_bench_device(app, context);
  register_info(app, context);
  for (CLI::App* command : app.get_subcommands({})) command->fallthrough();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0)
      throw UserError(std::string(error.what()) + "\nRun with --help for the options.");
    if (is_root) app.exit(error);  // prints help or version
    return kExitSuccess;
  }
  context.num_threads = set_num_threads(mpi.world(), threads);
  return context.run();
}

Outcome run_guarded(int argc, char** argv, MpiEnvironment& mpi) {
  try {
    return {run_command(argc, argv, mpi), ""};
  } catch (const UserError& error) {
    return {kExitUserError, error.what()};
  } catch (const RuntimeFault& error) {
    return {kExitFailure, error.what()};
  } catch (const std::bad_alloc&) {
    return {kExitFailure, "out of memory; `openmoe plan` shows what a recipe needs on each rank"};
  } catch (const std::exception& error) {
    return {kExitFailure, std::string("internal error: ") + error.what()};
  }
}

// In one piece: a launcher puts what it reads of the ranks together as it comes.
void print_failure(const std::string& who, const std::string& message) {
  std::cout.flush();
  std::cerr << "openmoe: " + who + message + "\n" << std::flush;
}

// For a rank that fails alone: says why, then ends every rank.
[[noreturn]] void print_and_abort(const MpiEnvironment& mpi, const std::string& message,
                                  int exit_code) {
  print_failure("error on rank " + std::to_string(mpi.world_rank()) + ": ", message);
  leave_last_words();
  MpiEnvironment::abort(exit_code);
}

// All ranks are here: rank 0 prints each different message once. Returns the job's exit code, the
// same on every rank.
int report_together(MpiEnvironment& mpi, const Outcome& outcome) {
  const auto texts = mpi.world().all_gather(outcome.message);
  const auto codes = mpi.world().all_gather(std::to_string(outcome.exit_code));
  int job_code = kExitSuccess;
  for (const std::string& code : codes) job_code = std::max(job_code, std::stoi(code));
  if (mpi.world_rank() != 0) return job_code;
  for (auto text = texts.begin(); text != texts.end(); ++text) {
    if (text->empty() || std::find(texts.begin(), text, *text) != text) continue;
    const auto rank = text - texts.begin();
    print_failure(rank == 0 ? "error: " : "error on rank " + std::to_string(rank) + ": ", *text);
  }
  if (job_code != kExitSuccess) wait_until_read(STDERR_FILENO);
  return job_code;
}

// The exit code of this rank. Ends the whole job instead of returning when other ranks do not come
// here.
int conclude(MpiEnvironment& mpi, const Outcome& outcome) {
  std::cout.flush();
  // A rank that succeeded waits as MPI_Finalize would. Failed ranks give up one after the other, so
  // that as a rule one speaks.
  const std::chrono::milliseconds patience(outcome.message.empty() ? -1
                                                                   : 2000 + 200 * mpi.world_rank());
  if (wait_for_all_ranks(patience)) return report_together(mpi, outcome);
  print_and_abort(mpi, outcome.message, outcome.exit_code);
}

int run(int argc, char** argv) {
  MpiEnvironment mpi(&argc, &argv);
  try {
    return conclude(mpi, run_guarded(argc, argv, mpi));
  } catch (const std::exception& error) {
    print_and_abort(mpi, error.what(), kExitFailure);
  }
}

}  // namespace
}  // namespace openmoe

int main(int argc, char** argv) {
  try {
    return openmoe::run(argc, argv);
  } catch (const std::exception& error) {  // MPI did not start
    openmoe::print_failure("error: ", error.what());
    return openmoe::kExitFailure;
  }
}
