// Part of every program that is built with sanitizers: libraries stay loaded, so that reports, and
// the suppressions by library, can name the plugins that Open MPI would have unloaded by the end.
extern "C" __attribute__((visibility("default"))) int dlclose(void*) {
  return 0;
}
