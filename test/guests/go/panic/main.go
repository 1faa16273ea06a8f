// Command panic ends in a Go panic, three calls deep; the Go runtime prints it and exits with 2.
package main

import "os"

//go:noinline
func innermost(reason string) { panic(reason) }

//go:noinline
func middle(reason string) { innermost(reason) }

//go:noinline
func outermost(reason string) { middle(reason) }

func main() {
	reason := "on purpose"
	if len(os.Args) > 1 {
		reason = os.Args[1]
	}
	outermost(reason)
}
