// memgrow [MIB [hold]]: grows the memory by 1 MiB steps up to MIB (default: all it gets), writes to every page,
// and prints `grew N MiB` or `refused after N MiB`; with `hold` it then sleeps for ever.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { PAGE = 65536, PAGES_PER_MIB = 16, HOST_PAGE = 4096 };

static int grow_one_mib(void) {
  size_t first = __builtin_wasm_memory_grow(0, PAGES_PER_MIB);
  if (first == (size_t)-1) return -1;
  for (size_t offset = 0; offset < PAGES_PER_MIB * PAGE; offset += HOST_PAGE)
    *(volatile char *)(first * PAGE + offset) = 1;
  return 0;
}

int main(int argc, char **argv) {
  long wanted = argc > 1 ? atol(argv[1]) : 4096, grown = 0;
  while (grown < wanted && grow_one_mib() == 0) grown++;
  printf("%s %ld MiB\n", grown == wanted ? "grew" : "refused after", grown);
  fflush(stdout);
  while (argc > 2) sleep(3600);
  return 0;
}
