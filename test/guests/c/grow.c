// grow THEN [STEP [MOST]]: grows the memory by STEP pages (default 16) until it is refused or has grown by MOST MiB,
// writes to every page, and prints `grew N MiB` or `refused after N MiB`. After a refusal it does what THEN says:
//   on         goes on and ends with 0
//   exit       ends with 3, silently
//   say        writes `out of memory` to standard error and ends with 3
//   abort      aborts
//   unchecked  uses the refusal's -1 as if it were memory
//   smaller    is granted a single page, then aborts
//   late       works for seconds, then aborts
//   wait       for each line of standard input: grows again, by the line's number of MiB
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 65536, HOST_PAGE = 4096 };
static const size_t REFUSED = (size_t)-1;
static size_t grown_pages;

static void touch(size_t first, size_t pages) {
  for (size_t offset = 0; offset < pages * PAGE; offset += HOST_PAGE)
    *(volatile char *)(first * PAGE + offset) = 1;
}

// Whether all of it was granted.
static int grow(size_t step, size_t most_pages) {
  while (most_pages > 0) {
    size_t pages = step < most_pages ? step : most_pages;
    size_t first = __builtin_wasm_memory_grow(0, pages);
    if (first == REFUSED) return 0;
    touch(first, pages);
    grown_pages += pages;
    most_pages -= pages;
  }
  return 1;
}

static void tell(int granted) {
  printf("%s %zu MiB\n", granted ? "grew" : "refused after", grown_pages / 16);
  fflush(stdout);
}

// A chain of dependent steps that no compiler shortens: more than a second of any processor, whatever the clock says.
static unsigned long long work(void) {
  unsigned long long value = 1;
  for (long i = 0; i < 1500000000; i++) {
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
  }
  return value;
}

int main(int argc, char **argv) {
  const char *then = argc > 1 ? argv[1] : "on";
  size_t step = argc > 2 ? (size_t)atol(argv[2]) : 16;
  size_t most_pages = argc > 3 ? (size_t)atol(argv[3]) * 16 : 65536;
  char line[32];
  int granted = grow(step, most_pages);
  tell(granted);
  if (!strcmp(then, "wait")) {
    while (fgets(line, sizeof line, stdin)) tell(grow(step, (size_t)atol(line) * 16));
    return 0;
  }
  if (granted || !strcmp(then, "on")) return 0;
  if (!strcmp(then, "exit")) return 3;
  if (!strcmp(then, "say")) {
    fputs("grow: out of memory\n", stderr);
    return 3;
  }
  if (!strcmp(then, "unchecked")) touch(REFUSED, 1);
  if (!strcmp(then, "smaller") && __builtin_wasm_memory_grow(0, 1) == REFUSED) return 4;
  if (!strcmp(then, "late") && work() == 0) return 5;
  abort();
}
