// flood MIB: writes that much to standard output as lines of 64 bytes, each with its own number.
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  long lines = (argc > 1 ? atol(argv[1]) : 1) * 16384;
  for (long line = 0; line < lines; line++)
    if (printf("%063ld\n", line) < 0) return 1;
  return fflush(stdout) == 0 ? 0 : 1;
}
