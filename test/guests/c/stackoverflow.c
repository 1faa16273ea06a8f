// stackoverflow: calls itself without end.
static volatile int depth;

__attribute__((noinline)) int descend(int level) {
  depth = level;
  return descend(level + 1) + depth;
}

int main(void) { return descend(0); }
