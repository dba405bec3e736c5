// A job whose last rank stops in the middle, for the test of the watchdog: its main thread sleeps
// for ever while the others wait for it in a barrier. Usage: stuck_tool GROUP, "world", "expert" or
// "late comers", which is made after the watchdog: the group of the barrier.
#include <chrono>
#include <string>
#include <thread>

#include "core/config/recipe.h"
#include "parallel/mpi_environment.h"
#include "parallel/observed_communicator.h"
#include "parallel/process_grid.h"
#include "parallel/watchdog.h"

int main(int argc, char** argv) {
  using namespace openmoe;
  MpiEnvironment mpi(&argc, &argv);
  CollectiveObservers observers;
  RankActivity activity;
  observers.add(activity);
  const auto world = make_observed_communicator(mpi.world(), observers);
  ProcessGrid grid(*world, world->size(), 1);
  Watchdog watchdog(*world, grid.coordinates(), observers, activity,
                    {.silence = 20.0, .idle = 3.0});
  const auto late = world->split(0, world->rank_in_group());
  late->set_name("late comers");
  watchdog.learn_groups(*world);
  activity.enter_step(12);
  activity.enter_phase("reading the batch");
  world->barrier();
  while (grid.world_rank() == world->size() - 1)
    std::this_thread::sleep_for(std::chrono::seconds(1));
  const std::string group = argc > 1 ? argv[1] : "";
  (group == "expert" ? grid.expert() : group == "late comers" ? *late : *world).barrier();
  return 0;
}
