// hello [args WORD... | env [NAME] | cwd | exit N | return N]: what a program is given, and how it ends.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static int print_environment(const char *name) {
  for (char **entry = environ; *entry; entry++)
    if (!name) puts(*entry);
  if (!name) return 0;
  const char *value = getenv(name);
  puts(value ? value : "(unset)");
  return value ? 0 : 1;
}

static int print_directory(void) {
  char path[4096];
  if (!getcwd(path, sizeof path)) return 1;
  puts(path);
  return 0;
}

int main(int argc, char **argv) {
  const char *verb = argc > 1 ? argv[1] : "hello";
  const char *word = argc > 2 ? argv[2] : NULL;
  if (!strcmp(verb, "args")) {
    for (int i = 0; i < argc; i++) puts(argv[i]);
    return 0;
  }
  if (!strcmp(verb, "env")) return print_environment(word);
  if (!strcmp(verb, "cwd")) return print_directory();
  if (!strcmp(verb, "exit")) exit(word ? atoi(word) : 0);
  if (!strcmp(verb, "return")) return word ? atoi(word) : 0;
  puts(verb);
  return 0;
}
