{{- define "skiff.name" -}}
{{ .Release.Name }}-node
{{- end }}

{{/* What identifies the installer's pods. Never change it: a DaemonSet's selector is immutable. */}}
{{- define "skiff.selector" -}}
app.kubernetes.io/name: skiff-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "skiff.labels" -}}
{{ include "skiff.metadata" . }}
{{ include "skiff.selector" . }}
{{- end }}

{{- define "skiff.metadata" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "skiff.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The nodes that the programs are built for. */}}
{{- define "skiff.nodeSelector" -}}
{{- merge (dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64") .Values.nodeSelector | toYaml }}
{{- end }}

{{/* A release of a chart without metrics has no such value after `--reuse-values`. */}}
{{- define "skiff.metricsPort" -}}
{{ .Values.metrics.port | default 9470 }}
{{- end }}

{{/* Contradictions, which a schema can reject but not explain. */}}
{{- define "skiff.check" -}}
{{- if not .Values.image.repository }}{{ fail "image.repository: say where the installer's image is; there is no default" }}{{ end }}
{{- with .Values.restart }}
{{- if and .unit (ne .by "systemd") }}{{ fail (printf "restart.unit is for `restart.by: systemd`, not for `%s`" .by) }}{{ end }}
{{- if and .command (ne .by "command") }}{{ fail (printf "restart.command is for `restart.by: command`, not for `%s`" .by) }}{{ end }}
{{- if and (eq .by "command") (not .command) }}{{ fail "`restart.by: command` needs restart.command" }}{{ end }}
{{- end }}
{{- with .Values.metrics }}
{{- if and (.serviceMonitor).create (not .enabled) }}{{ fail "metrics.serviceMonitor.create needs metrics.enabled" }}{{ end }}
{{- end }}
{{- range $key, $value := dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64" }}
{{- with index $.Values.nodeSelector $key }}{{ if ne . $value }}{{ fail (printf "nodeSelector: skiff is built for `%s: %s` only" $key $value) }}{{ end }}{{ end }}
{{- end }}
{{- end }}

{{/* What the values say about the node, as variables that every command in the installer's pods reads. */}}
{{- define "skiff.node" -}}
- name: SKIFF_NODE_HOST
  value: /host
- name: SKIFF_NODE_TIMEOUT
  value: {{ .Values.restart.timeoutSeconds | quote }}
{{- with .Values.containerd }}
{{- range $key, $name := dict "config" "CONFIG" "socket" "SOCKET" "program" "CONTAINERD" }}
{{- with index $.Values.containerd $key }}
- name: SKIFF_NODE_{{ $name }}
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.restart }}
{{- with .unit }}
- name: SKIFF_NODE_UNIT
  value: {{ . | quote }}
{{- end }}
{{- with .command }}
- name: SKIFF_NODE_RESTART_COMMAND
  value: {{ . | quote }}
{{- end }}
{{- if eq .by "signal" }}
- name: SKIFF_NODE_RESTART_BY_SIGNAL
  value: "true"
{{- end }}
{{- end }}
{{- end }}
