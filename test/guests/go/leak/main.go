// Command leak keeps everything that it allocates, 1 MiB at a time, until Go's runtime gives up.
package main

import "fmt"

var kept [][]byte

func main() {
	fmt.Println("leaking")
	for {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		kept = append(kept, block)
	}
}
