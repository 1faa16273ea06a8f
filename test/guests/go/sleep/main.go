// Command sleep says so, then sleeps for its argument's duration (default: an hour), and says that it woke.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	duration := time.Hour
	if len(os.Args) > 1 {
		var err error
		if duration, err = time.ParseDuration(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	fmt.Println("sleeping")
	time.Sleep(duration)
	fmt.Println("woke")
}
