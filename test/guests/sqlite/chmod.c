// What SQLite's shell calls and WASI does not have. Its function `writefile` sets the mode of the file that it writes.
#include <errno.h>
#include <sys/stat.h>

int chmod(const char *path, mode_t mode) {
  (void)path;
  (void)mode;
  errno = ENOSYS;
  return -1;
}
