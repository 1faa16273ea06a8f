// Command reactor has no `_start`: its functions are called, after `_initialize`. What they keep lives between the calls.
package main

import (
	"fmt"
	"os"
)

//go:wasmexport greet
func greet() { fmt.Println("hello from Go's greet") }

//go:wasmexport seven
func seven() int32 { return 7 }

//go:wasmexport leave
func leave() { os.Exit(9) }

//go:wasmexport fail
func fail() { panic("on purpose") }

// totals counts the calls of counter, and sums what was added.
var totals = map[string]int64{}

//go:wasmexport counter
func counter() int32 {
	totals["counter"]++
	return int32(totals["counter"])
}

//go:wasmexport add
func add(left, right int32) int32 { return left + right }

// collect adds to a sum, on another goroutine as most of Go's programs do, and returns the sum.
//
//go:wasmexport collect
func collect(value int64) int64 {
	done := make(chan int64)
	go func() {
		totals["sum"] += value
		done <- totals["sum"]
	}()
	return <-done
}

//go:wasmexport half
func half(value float64) float64 { return value / 2 }

func main() {}
