package main

import (
	"errors"
	"os"

	helm "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
)

func init() { programs["helm"] = runHelm }

func runHelm() {
	kube.ManagedFieldsManager = "helm"
	command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err == nil {
		err = command.Execute()
	}
	if err == nil {
		return
	}
	if failure := (helm.CommandError{}); errors.As(err, &failure) {
		os.Exit(failure.ExitCode)
	}
	os.Exit(1)
}
