// Command hello prints one line: a real Go program of 2 to 3 MB, runtime and all.
package main

import "fmt"

func main() {
	fmt.Println("hello")
}
