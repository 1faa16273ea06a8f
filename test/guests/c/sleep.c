// sleep [MS]: says so, then sleeps that long (default: an hour), and says that it woke.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
  long ms = argc > 1 ? atol(argv[1]) : 3600000;
  struct timespec duration = {ms / 1000, ms % 1000 * 1000000};
  puts("sleeping");
  fflush(stdout);
  if (clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, NULL) != 0) return 1;
  puts("woke");
  return 0;
}
