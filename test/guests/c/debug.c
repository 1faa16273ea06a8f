// debug: traps in `innermost`, which is compiled into `middle`, called by `outermost`. Built with debug information.
#include <stdio.h>

static volatile int one = 1;

static inline __attribute__((always_inline)) void innermost(void) {
  if (one == 1) __builtin_trap();
}

static __attribute__((noinline)) void middle(void) {
  innermost();
  one = 2;
}

static __attribute__((noinline)) void outermost(void) {
  middle();
  one = 3;
}

int main(void) {
  puts("about to trap");
  fflush(stdout);
  outermost();
}
