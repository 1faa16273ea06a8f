#!/bin/bash
# demo.sh: from nothing to a response of a wasm pod through its Service, with the time of each step. The cluster stays up.
. "$(dirname "$0")/cluster.sh"

show() { printf '        $ %s\n' "$*" >&2; }

cluster=$("$here/up.sh" | tail -n 1)
"$here/equip.sh" "$cluster"
kubectl=$cluster/bin/kubectl
example=$here/../../runtime-class/manifests/examples/web.yaml
show kubectl apply -f runtime-class/manifests/examples/web.yaml
"$kubectl" apply -f "$example" >&2
"$kubectl" rollout status deployment web --timeout=120s >&2
step "the example runs"
show kubectl get pods
"$kubectl" get pods -l app=web -o wide >&2
address=$("$kubectl" get service web -o 'jsonpath={.spec.clusterIP}:{.spec.ports[0].port}')
show curl "http://$address/"
"$cluster/bin/in-net" curl -sS --fail --max-time 10 "http://$address/"
step "the Service has answered"
printf '\nTo run a program of your own, here an HTTP component (docs/from-source-to-pod.md has programs in five languages):\n\n' >&2
"$here/next.sh" "$cluster" | sed 's/^/    /' >&2
