// growcost cost PAGES | wait
//   cost PAGES  grows the memory PAGES times by one page, then PAGES times by one page that it writes to, and prints the
//               mean nanoseconds of either growth
//   wait        grows until it is refused, writes `refused`, asks until it is granted one more page, writes `granted`, and
//               sleeps
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 65536, HOST_PAGE = 4096 };
static const size_t REFUSED = (size_t)-1;

static double now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static size_t grow(void) { return __builtin_wasm_memory_grow(0, 1); }

static void touch(size_t page) {
  for (size_t offset = 0; offset < PAGE; offset += HOST_PAGE) *(volatile char *)(page * PAGE + offset) = 1;
}

static int cost(int pages) {
  double begun = now_ns();
  for (int i = 0; i < pages; i++)
    if (grow() == REFUSED) return 1;
  double grown = now_ns();
  for (int i = 0; i < pages; i++) {
    size_t page = grow();
    if (page == REFUSED) return 1;
    touch(page);
  }
  double touched = now_ns();
  printf("%.1f %.1f\n", (grown - begun) / pages, (touched - grown) / pages);
  return 0;
}

static int say(const char *line) { return write(1, line, strlen(line)) < 0; }

static int wait_for_memory(void) {
  while (grow() != REFUSED) {}
  if (say("refused\n")) return 1;
  while (grow() == REFUSED) {}
  if (say("granted\n")) return 1;
  for (;;) sleep(3600);
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "cost")) return cost(atoi(argv[2]));
  if (argc == 2 && !strcmp(argv[1], "wait")) return wait_for_memory();
  return 2;
}
