// Command files walks its arguments: `read PATH`, `list PATH`, `write PATH TEXT`, and prints what came of it.
// It ends with 1 when the step failed, after naming the error as Go does.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	text, err := step(os.Args[1:])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(text)
}

func step(args []string) (string, error) {
	switch {
	case len(args) == 2 && args[0] == "read":
		text, err := os.ReadFile(args[1])
		return strings.TrimSuffix(string(text), "\n"), err
	case len(args) == 2 && args[0] == "list":
		return list(args[1])
	case len(args) == 3 && args[0] == "write":
		return "written", os.WriteFile(args[1], []byte(args[2]), 0o644)
	}
	return "", fmt.Errorf("want read PATH, list PATH or write PATH TEXT, not %q", args)
}

func list(path string) (string, error) {
	entries, err := os.ReadDir(path)
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " "), err
}
