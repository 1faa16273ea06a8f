// simd: the dot product of 0..1023 with itself in 128-bit lanes; prints 357389824.
#include <stdio.h>
#include <wasm_simd128.h>

int main(void) {
  static int numbers[1024];
  for (int i = 0; i < 1024; i++) numbers[i] = i;
  v128_t sum = wasm_i32x4_splat(0);
  for (int i = 0; i < 1024; i += 4) {
    v128_t lane = wasm_v128_load(&numbers[i]);
    sum = wasm_i32x4_add(sum, wasm_i32x4_mul(lane, lane));
  }
  printf("%d\n", wasm_i32x4_extract_lane(sum, 0) + wasm_i32x4_extract_lane(sum, 1) +
                     wasm_i32x4_extract_lane(sum, 2) + wasm_i32x4_extract_lane(sum, 3));
  return 0;
}
