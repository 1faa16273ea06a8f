// The native side of the benchmark's hello: the same line as the wasm guest prints, nothing else.
#include <unistd.h>

int main(void) {
  static const char line[] = "hello\n";
  return write(1, line, sizeof line - 1) == sizeof line - 1 ? 0 : 1;
}
