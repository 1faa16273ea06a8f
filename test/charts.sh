#!/bin/bash
# charts.sh [--update]: checks the chart without a cluster: Helm's own rules, values that are refused, and the sets of values in
# charts/skiff/tests/values, rendered and compared with charts/skiff/tests/golden. --update rewrites the latter, for review.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
cd "$here/.."
chart=charts/skiff
helm=$("$here/tools/build.sh" kubernetes | tail -n 1)/helm
work=$(mktemp -d); trap 'rm -r "$work"' EXIT
# The user's own Helm must not matter.
export HELM_CONFIG_HOME=$work HELM_CACHE_HOME=$work HELM_DATA_HOME=$work KUBECONFIG=/dev/null
failed=0

# check NAME COMMAND...: prints one line per check, and the command's output only if it fails.
check() {
  local name=$1; shift
  if "$@" > "$work/said" 2>&1; then say "ok: $name"; else say "FAILED: $name"; cat "$work/said" >&2; failed=$((failed + 1)); fi
}

render() { "$helm" template skiff "$chart" --namespace skiff-system --kube-version 1.36.0 "$@"; }

golden() { diff -u "$chart/tests/golden/$1.yaml" <(render --values "$chart/tests/values/$1.yaml"); }

# refused SENTENCE OPTION...: the values are refused with this sentence; `check` collects the output.
refused() {
  local sentence=$1; shift
  ! render --set image.repository=x "$@" || return 1
  grep -qF -- "$sentence" "$work/said"
}

# lines: the content of a manifest in any order, without comments and labels.
lines() { grep -vE '^ *(#|$)|^---|labels:|app.kubernetes.io/|helm.sh/' | sort; }

# same_class: the chart's runtime class is the one of the plain manifest.
same_class() {
  diff <(lines < runtime-class/manifests/skiff.yaml) \
    <(render --values "$chart/tests/values/least.yaml" --show-only templates/runtimeclass.yaml | lines)
}

# every_value_is_read: a value that no template names would be ignored silently.
every_value_is_read() {
  local key missing=''
  for key in $(sed -n 's/^\([a-zA-Z]*\):.*/\1/p' "$chart/values.yaml"); do
    grep -rqE "\.Values\.$key\b" "$chart/templates" || missing+=" $key"
  done
  [ -z "$missing" ] || { echo "no template reads:$missing"; return 1; }
}

# limits_in FILE PATTERN: the names of limits in a file, one per line.
limits_in() { grep -oE "$2" "$1" | grep -oE '[a-z]+(-[a-z]+)*"' | tr -d '"' | sort; }

# same_limits: the annotations that the policy knows are those that the shim knows.
same_limits() {
  diff <(limits_in "$chart/templates/annotation-policy.yaml" '\$limits := list .*' ) \
    <(sed -n 's/^ *(\("[a-z-]*"\), |limits, value|.*/\1/p' shim/shim/src/spec/limits.rs > "$work/limits" && limits_in "$work/limits" '.*')
}

# values_of_old: a release whose values are those of a chart without metrics, annotation policy and sandboxer (`--reuse-values`).
values_of_old() {
  render --set image.repository=x --set metrics=null --set annotationPolicy=null --set sandboxer=null > /dev/null
}

# metrics_of_old: metrics that are switched on in such a release are those of a new one.
metrics_of_old() {
  local on='metrics.enabled=true,metrics.serviceMonitor.create=true,metrics.dashboard.create=true'
  local absent='metrics.port=null,metrics.serviceMonitor.interval=null,metrics.serviceMonitor.labels=null,metrics.dashboard.labels=null'
  diff <(render --set "image.repository=x,$on") <(render --set "image.repository=x,$on,$absent") || return 1
  render --set image.repository=x,metrics.enabled=true,metrics.port=null,metrics.serviceMonitor=null,metrics.dashboard=null > "$work/old" &&
    grep -qF -- '--metrics-port=9470' "$work/old"
}

for file in "$chart"/tests/values/*.yaml; do
  name=$(basename "$file" .yaml)
  [ "${1:-}" != --update ] || render --values "$file" > "$chart/tests/golden/$name.yaml"
  check "lint with the values $name" "$helm" lint --strict --quiet "$chart" --values "$file"
  check "the output for the values $name" golden "$name"
done
check "the runtime class is that of runtime-class/manifests/skiff.yaml" same_class
check "the policy of annotations knows the limits of the shim" same_limits
check "values of a release that had no metrics" values_of_old
check "metrics that are switched on in a release that had none" metrics_of_old
check "every value is read" every_value_is_read

check "an image that is not set" refused "image.repository: say where the installer's image is" --set image.repository=
check "an image with a tag in the wrong place" refused "'/image/repository'" --set image.repository=x:1@sha256:0
check "a malformed digest" refused "at '/image/digest'" --set image.digest=sha256:0
check "an unknown key" refused "additional properties 'replicas' not allowed" --set replicas=1
check "an unknown key inside another" refused "at '/runtimeClass/overhead': additional properties 'disk' not allowed" \
  --set runtimeClass.overhead.disk=1
check "an unknown way to restart" refused "at '/restart/by'" --set restart.by=reboot
check "a unit without systemd" refused 'restart.unit is for `restart.by: systemd`, not for `signal`' \
  --set restart.by=signal --set restart.unit=x
check "a command that is not used" refused 'restart.command is for `restart.by: command`, not for `systemd`' --set restart.command=x
check "a command that is missing" refused '`restart.by: command` needs restart.command' --set restart.by=command
check "a port that is none" refused "at '/metrics/port'" --set metrics.port=70000
check "a ServiceMonitor without metrics" refused 'metrics.serviceMonitor.create needs metrics.enabled' \
  --set metrics.serviceMonitor.create=true
check "a path that is relative" refused "at '/programs'" --set programs=opt/skiff
check "an interval of zero" refused "at '/intervalSeconds'" --set intervalSeconds=0
check "a share above 100 %" refused "at '/updateStrategy/maxUnavailable'" --set updateStrategy.maxUnavailable=200%
check "no node at a time" refused "at '/updateStrategy/maxUnavailable'" --set updateStrategy.maxUnavailable=0
check "a malformed quantity" refused "at '/runtimeClass/overhead/memory'" --set runtimeClass.overhead.memory=much
check "nodes of another kind" refused 'nodeSelector: skiff is built for `kubernetes.io/arch: amd64` only' \
  --set 'nodeSelector.kubernetes\.io/arch=arm64'
check "a cluster that is too old" refused "chart requires kubeVersion" --kube-version 1.33.9

[ "$failed" = 0 ]
