// trees DEPTH: builds, sums up and frees binary trees by malloc and free, one large, one that lives long and many small
// ones, and prints the milliseconds that it took. DEPTH 20 takes 128 MiB.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { DEPTH_MIN = 4, DEPTH_STEP = 8 };

struct tree {
  struct tree *left, *right;
  long long value;
};

static double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static struct tree *plant(int depth) {
  struct tree *tree = malloc(sizeof *tree);
  if (!tree) abort();
  tree->value = 1;
  tree->left = depth > 0 ? plant(depth - 1) : NULL;
  tree->right = depth > 0 ? plant(depth - 1) : NULL;
  return tree;
}

static long long sum(const struct tree *tree) {
  return tree ? tree->value + sum(tree->left) + sum(tree->right) : 0;
}

static void fell(struct tree *tree) {
  if (!tree) return;
  fell(tree->left);
  fell(tree->right);
  free(tree);
}

static long long plant_and_fell(int depth) {
  struct tree *tree = plant(depth);
  long long nodes = sum(tree);
  fell(tree);
  return nodes;
}

int main(int argc, char **argv) {
  int depth = argc > 1 ? atoi(argv[1]) : 0;
  if (depth < DEPTH_MIN || depth > 24) return 2;
  double begun = now_ms();
  long long nodes = plant_and_fell(depth + 1), expected = (4LL << depth) - 1;
  struct tree *lasting = plant(depth);
  for (int small = DEPTH_MIN; small <= depth; small += DEPTH_STEP)
    for (long trees = 1L << (depth - small); trees > 0; trees--) {
      nodes += plant_and_fell(small);
      expected += (2LL << small) - 1;
    }
  nodes += sum(lasting);
  expected += (2LL << depth) - 1;
  double ended = now_ms();
  printf("%.3f\n", ended - begun);
  return nodes != expected;
}
