// trap [unreachable | bounds | divide]: traps in `innermost`, called by `middle`, called by `outermost`.
#include <stdio.h>
#include <string.h>

static volatile int one = 1, zero;

__attribute__((noinline)) void innermost(const char *kind) {
  if (!strcmp(kind, "bounds")) *(volatile int *)0xfffffff0u = 1;
  if (!strcmp(kind, "divide")) zero = one / zero;
  __builtin_trap();
}

__attribute__((noinline)) void middle(const char *kind) {
  innermost(kind);
  zero = 1;
}

__attribute__((noinline)) void outermost(const char *kind) {
  middle(kind);
  zero = 2;
}

int main(int argc, char **argv) {
  puts("about to trap");
  fflush(stdout);
  outermost(argc > 1 ? argv[1] : "unreachable");
}
