// Command reactor has no `_start`: its functions are run by name, after `_initialize`.
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

func main() {}
