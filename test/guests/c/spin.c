// spin: says so, then uses the processor for ever.
#include <stdio.h>

int main(void) {
  puts("spinning");
  fflush(stdout);
  for (volatile unsigned long long turn = 0;; turn++) {
  }
}
