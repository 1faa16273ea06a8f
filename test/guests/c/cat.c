// cat: copies standard input to standard output until its end, in blocks, with partial writes continued.
#include <stdio.h>
#include <unistd.h>

static int write_all(const char *bytes, ssize_t length) {
  for (ssize_t done = 0; done < length;) {
    ssize_t wrote = write(STDOUT_FILENO, bytes + done, (size_t)(length - done));
    if (wrote < 0) return -1;
    done += wrote;
  }
  return 0;
}

int main(void) {
  static char block[1 << 16];
  ssize_t length;
  while ((length = read(STDIN_FILENO, block, sizeof block)) > 0)
    if (write_all(block, length) < 0) length = -1;
  if (length < 0) perror("cat");
  return length < 0;
}
