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

{{/* Contradictions, which a schema can reject but not explain. */}}
{{- define "skiff.check" -}}
{{- if not .Values.image.repository }}{{ fail "image.repository: say where the installer's image is; there is no default" }}{{ end }}
{{- with .Values.restart }}
{{- if and .unit (ne .by "systemd") }}{{ fail (printf "restart.unit is for `restart.by: systemd`, not for `%s`" .by) }}{{ end }}
{{- if and .command (ne .by "command") }}{{ fail (printf "restart.command is for `restart.by: command`, not for `%s`" .by) }}{{ end }}
{{- if and (eq .by "command") (not .command) }}{{ fail "`restart.by: command` needs restart.command" }}{{ end }}
{{- end }}
{{- range $key, $value := dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64" }}
{{- with index $.Values.nodeSelector $key }}{{ if ne . $value }}{{ fail (printf "nodeSelector: skiff is built for `%s: %s` only" $key $value) }}{{ end }}{{ end }}
{{- end }}
{{- end }}

{{/* What the values say about the node, as options of the installer. */}}
{{- define "skiff.node" -}}
{{- $words := list }}
{{- with .Values.containerd }}
{{- range $key := list "config" "socket" }}
{{- with index $.Values.containerd $key }}{{ $words = append $words (printf "--%s=%s" $key .) }}{{ end }}
{{- end }}
{{- with .program }}{{ $words = append $words (printf "--containerd=%s" .) }}{{ end }}
{{- end }}
{{- with .Values.restart }}
{{- with .unit }}{{ $words = append $words (printf "--unit=%s" .) }}{{ end }}
{{- with .command }}{{ $words = append $words (printf "--restart-command=%s" .) }}{{ end }}
{{- if eq .by "signal" }}{{ $words = append $words "--restart-by-signal" }}{{ end }}
{{- end }}
{{- with $words }}{{ toYaml . }}{{ end }}
{{- end }}
