// files VERB:PATH[=TEXT]...: does each step and prints `VERB PATH: ` and what came of it, a file's text or an errno's name.
// Verbs: read list stat write append truncate mkdir rmdir remove readlink touch; with a second path as TEXT: rename link
// symlink. On whole directories: fill (makes TEXT files), empty (removes the files while it lists them), count (lists it TEXT
// times and prints the smallest and the largest number of names that begin with `keep`), inodes (compares with lstat).
// The exit code is the number of steps that failed.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *errno_name(int code) {
  static char number[16];
  switch (code) {
#define NAME(code) case code: return #code;
    NAME(EACCES) NAME(EBADF) NAME(EBUSY) NAME(EEXIST) NAME(EFBIG) NAME(EINVAL) NAME(EIO) NAME(EISDIR) NAME(ELOOP)
    NAME(EMFILE) NAME(ENAMETOOLONG) NAME(ENFILE) NAME(ENODEV) NAME(ENOENT) NAME(ENOSPC) NAME(ENOSYS) NAME(ENOTCAPABLE)
    NAME(ENOTDIR) NAME(ENOTEMPTY) NAME(ENOTSUP) NAME(ENXIO) NAME(EPERM) NAME(EROFS) NAME(ESPIPE) NAME(EXDEV)
#undef NAME
  }
  snprintf(number, sizeof number, "errno %d", code);
  return number;
}

static int read_file(const char *path) {
  char block[4096];
  ssize_t length;
  int file = open(path, O_RDONLY);
  if (file < 0) return -1;
  while ((length = read(file, block, sizeof block)) > 0) fwrite(block, 1, (size_t)length, stdout);
  int code = errno;
  close(file);
  errno = code;
  return length < 0 ? -1 : 0;
}

static int by_name(const void *left, const void *right) { return strcmp(*(char *const *)left, *(char *const *)right); }

static int list_directory(const char *path) {
  static char *names[10000];
  size_t count = 0;
  DIR *directory = opendir(path);
  if (!directory) return -1;
  for (struct dirent *entry; count < 10000 && (entry = readdir(directory));)
    if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) names[count++] = strdup(entry->d_name);
  closedir(directory);
  qsort(names, count, sizeof *names, by_name);
  for (size_t i = 0; i < count; i++) printf("%s%s", i ? " " : "", names[i]);
  return 0;
}

static int stat_file(const char *path) {
  struct stat status;
  if (lstat(path, &status) < 0) return -1;
  const char *kind = S_ISDIR(status.st_mode) ? "directory" : S_ISREG(status.st_mode) ? "file"
                   : S_ISLNK(status.st_mode) ? "symlink" : S_ISCHR(status.st_mode) ? "device" : "other";
  printf("%s %lld", kind, (long long)status.st_size);
  return 0;
}

static int write_file(const char *path, int flags, const char *text) {
  int file = open(path, O_WRONLY | O_CREAT | flags, 0644);
  if (file < 0) return -1;
  ssize_t wrote = write(file, text, strlen(text));
  int code = errno;
  close(file);
  errno = code;
  return wrote < 0 ? -1 : 0;
}

static int fill_directory(const char *path, int count) {
  char name[512];
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof name, "%s/keep-%06d", path, i);
    int file = open(name, O_CREAT | O_WRONLY, 0644);
    if (file < 0) return -1;
    close(file);
  }
  return 0;
}

static int empty_directory(const char *path) {
  char name[512];
  DIR *directory = opendir(path);
  if (!directory) return -1;
  struct dirent *entry;
  while (errno = 0, (entry = readdir(directory))) {
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && unlink(name)) break;
  }
  int code = errno;
  closedir(directory);
  errno = code;
  return code ? -1 : 0;
}

static int count_names(const char *path, int times) {
  int least = 1 << 30, most = 0;
  for (int i = 0; i < times; i++) {
    DIR *directory = opendir(path);
    if (!directory) return -1;
    int count = 0;
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory))) count += !strncmp(entry->d_name, "keep", 4);
    int code = errno;
    closedir(directory);
    if ((errno = code)) return -1;
    if (count < least) least = count;
    if (count > most) most = count;
  }
  printf("%d %d", least, most);
  return 0;
}

static int compare_inodes(const char *path) {
  char name[512];
  DIR *directory = opendir(path);
  if (!directory) return -1;
  for (struct dirent *entry; (entry = readdir(directory));) {
    struct stat status;
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    if (!strcmp(entry->d_name, "..") || lstat(name, &status)) continue;
    printf("%s%s ", entry->d_name, status.st_ino == entry->d_ino ? "" : " differs");
  }
  closedir(directory);
  return 0;
}

static int read_link(const char *path) {
  char target[4096];
  ssize_t length = readlink(path, target, sizeof target);
  if (length > 0) fwrite(target, 1, (size_t)length, stdout);
  return length < 0 ? -1 : 0;
}

static int step(const char *verb, const char *path, const char *text) {
  errno = 0;
  if (!strcmp(verb, "read")) return read_file(path);
  if (!strcmp(verb, "list")) return list_directory(path);
  if (!strcmp(verb, "stat")) return stat_file(path);
  if (!strcmp(verb, "write")) return write_file(path, O_TRUNC, text);
  if (!strcmp(verb, "append")) return write_file(path, O_APPEND, text);
  if (!strcmp(verb, "truncate")) return truncate(path, atoll(text));
  if (!strcmp(verb, "mkdir")) return mkdir(path, 0755);
  if (!strcmp(verb, "rmdir")) return rmdir(path);
  if (!strcmp(verb, "remove")) return unlink(path);
  if (!strcmp(verb, "readlink")) return read_link(path);
  if (!strcmp(verb, "touch")) return utimensat(AT_FDCWD, path, (struct timespec[]){{1, 0}, {2, 0}}, 0);
  if (!strcmp(verb, "fill")) return fill_directory(path, atoi(text));
  if (!strcmp(verb, "empty")) return empty_directory(path);
  if (!strcmp(verb, "count")) return count_names(path, atoi(text));
  if (!strcmp(verb, "inodes")) return compare_inodes(path);
  if (!strcmp(verb, "rename")) return rename(path, text);
  if (!strcmp(verb, "link")) return link(path, text);
  if (!strcmp(verb, "symlink")) return symlink(text, path);
  errno = ENOSYS;
  return -1;
}

int main(int argc, char **argv) {
  int failed = 0;
  for (int i = 1; i < argc; i++) {
    char *path = strchr(argv[i], ':');
    if (!path) return 255;
    *path++ = 0;
    char *text = strchr(path, '=');
    if (text) *text++ = 0;
    printf("%s %s: ", argv[i], path);
    int result = step(argv[i], path, text ? text : "");
    if (result < 0) printf("%s", errno_name(errno));
    failed += result < 0;
    putchar('\n');
    fflush(stdout);
  }
  return failed;
}
