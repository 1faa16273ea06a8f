// recurse [DEPTH]: calls itself that deep (default: without end), then prints `reached DEPTH`.
#include <stdio.h>
#include <stdlib.h>

static volatile long reached;

__attribute__((noinline)) static long descend(long left) {
  reached++;
  return left == 0 ? 0 : descend(left - 1) + reached;
}

int main(int argc, char **argv) {
  long depth = argc > 1 ? atol(argv[1]) : -1;
  descend(depth);
  printf("reached %ld\n", reached - 1);
  return 0;
}
