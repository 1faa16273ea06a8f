// Command env prints, as one JSON object, what the program was given: its arguments, environment and directory.
package main

import (
	"encoding/json"
	"os"
	"strings"
)

type given struct {
	Args        []string          `json:"args"`
	Environment map[string]string `json:"env"`
	Directory   string            `json:"cwd"`
}

func main() {
	all := given{Args: os.Args, Environment: map[string]string{}}
	all.Directory, _ = os.Getwd()
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		all.Environment[name] = value
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		os.Exit(1)
	}
}
