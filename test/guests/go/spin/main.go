// Command spin says so, then loops for ever.
package main

import "fmt"

func main() {
	fmt.Println("spinning")
	for {
	}
}
