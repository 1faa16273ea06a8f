// reactor: no `_start`; functions to be called. `_initialize` must have run before; `counter` counts its calls.
#include <stdio.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(name)))

static int initialized;

__attribute__((constructor)) static void initialize(void) { initialized = 1; }

EXPORT("greet") void greet(void) {
  puts(initialized ? "hello from greet" : "not initialized");
  fflush(stdout);
}

EXPORT("seven") int seven(void) { return 7; }

EXPORT("leave") void leave(void) { exit(9); }

EXPORT("fail") void fail(void) { __builtin_trap(); }

EXPORT("add") int add(int left, int right) { return left + right; }

EXPORT("counter") int counter(void) {
  static int count;
  return ++count;
}
