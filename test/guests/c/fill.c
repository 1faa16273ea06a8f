// fill PATH [BLOCKS]: writes blocks of 64 KiB to a file until one is refused or BLOCKS are written, prints
// `wrote N KiB` and the refusal's errno name, removes the file, and writes a small one in its place.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char block[1 << 16];

static const char *name_of(int code) {
  switch (code) {
    case ENOSPC: return "ENOSPC";
    case EDQUOT: return "EDQUOT";
    case EFBIG: return "EFBIG";
    case EIO: return "EIO";
    default: return "another errno";
  }
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  long blocks = argc > 2 ? atol(argv[2]) : 1 << 20, kib = 0;
  int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644), code = 0;
  if (file < 0) return 2;
  for (long i = 0; i < blocks && code == 0; i++) {
    ssize_t wrote = write(file, block, sizeof block);
    if (wrote < 0) code = errno; else kib += wrote / 1024;
  }
  close(file);
  printf("wrote %ld KiB%s%s\n", kib, code ? ", then " : "", code ? name_of(code) : "");
  fflush(stdout);
  if (unlink(argv[1]) < 0) return 1;
  file = open(argv[1], O_WRONLY | O_CREAT, 0644);
  return file < 0 || write(file, "small", 5) != 5;
}
