// descriptors PATH: opens a file again and again until that is refused, prints `opened N`, closes one and opens it again.
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum { MOST = 100000 };

int main(int argc, char **argv) {
  int count = 0, last = -1, file;
  if (argc < 2) return 2;
  while (count < MOST && (file = open(argv[1], O_RDONLY)) >= 0) {
    last = file;
    count++;
  }
  printf("opened %d\n", count);
  if (last < 0 || close(last) < 0) return 1;
  return open(argv[1], O_RDONLY) < 0;
}
