#!/bin/bash
# up.sh: the kind back end: a docker daemon in namespaces of its own, in which kind makes a cluster. The node image is the one of
# build.sh, or SKIFF_KIND_IMAGE, a published one (`kindest/node:v...`).
. "$(dirname "$0")/host.sh"
kind=$here/kind

apt_need curl iproute2 procps util-linux
image=${SKIFF_KIND_IMAGE:-}
if [ -n "$image" ]; then needed=(docker kind); else needed=(docker kind node); fi
parts=$("$kind/build.sh" "${needed[@]}" | tail -n 1)
tools=$("$here/../tools/build.sh" kubernetes registry | tail -n 1)

# start: from nothing to a docker daemon that responds.
start() {
  rm -rf --one-file-system "$cluster"
  mkdir -p "$cluster"/{disk,helm,host,logs,registry}
  make_cgroups
  export cgroup cluster parts
  start_init "$kind/init.sh"
  wait_until 300 "docker: see $cluster/logs/init.log and $cluster/host/dockerd.log" in_host docker version
}

# import_image: the node image, under a name of its own.
import_image() {
  if [ -z "$image" ]; then
    in_host docker import --change 'ENV container=docker' --change 'STOPSIGNAL SIGRTMIN+3' \
      --change "$entrypoint" - node:1 < "$parts/node" > /dev/null
    return
  fi
  # The docker host has no access to other networks, so the machine pulls.
  "$tools/crane" pull "$image" "$cluster/host/pulled.tar"
  in_host docker load --quiet --input /cluster/pulled.tar > /dev/null
  rm "$cluster/host/pulled.tar"
  cp "$kind/node/start" "$cluster/host/"
  in_host docker create --name pulled "$image" > /dev/null
  in_host docker cp --quiet /cluster/start pulled:/kind/bin/start
  in_host docker commit --change "$entrypoint" pulled node:1 > /dev/null
  in_host docker rm pulled > /dev/null
}
entrypoint='ENTRYPOINT ["/kind/bin/start", "/usr/local/bin/entrypoint", "/sbin/init"]'

# create: the cluster as kind makes it, and the node's registry.
create() {
  import_image; step "node image"
  cp "$kind/cluster.yaml" "$cluster/host/"
  write_patches "$cluster/host/patches"
  in_host kind create cluster --name "$cluster_name" --image node:1 --config /cluster/cluster.yaml \
    --kubeconfig /cluster/kubeconfig --retain > "$cluster/logs/kind.log" 2>&1 ||
    { cat "$cluster/logs/kind.log" >&2; exit 1; }
  step "kind's cluster"
}

# write_patches DIRECTORY: kubeadm's pods request half of a machine with two processors, which the tests' pods need.
write_patches() {
  local component
  mkdir "$1"
  for component in etcd kube-{apiserver,controller-manager,scheduler}; do
    echo "spec: {containers: [{name: $component, resources: {requests: {cpu: 10m}}}]}" > "$1/$component.yaml"
  done
  echo 'spec: {template: {spec: {containers: [{name: coredns, resources: {requests: {cpu: 10m}}}]}}}' > "$1/corednsdeployment.yaml"
}

# namespaces: the folder of links to the node's namespaces, as the machine sees them.
namespaces() {
  echo "/proc/$(node_pid)/root/proc/$(in_host docker inspect --format '{{.State.Pid}}' "$node")/ns"
}

# serve_registry: runs in the node's network, and ends with the docker host's process 1.
serve_registry() {
  local ns pid; ns=$(namespaces) pid=$(node_pid)
  (
    for root in $(cgroup_roots); do echo 0 > "$root/cgroup.procs"; done
    exec setsid nsenter --net="$ns/net" --pid="/proc/$pid/ns/pid" -- \
      "$tools/crane" registry serve --address 127.0.0.1:5000 --disk "$cluster/registry" > "$cluster/logs/registry.log" 2>&1 < /dev/null
  ) &
}

make_wrappers() {
  local ns kubeconfig=$cluster/host/admin.conf; ns=$(namespaces)
  local net=(nsenter --net="$ns/net" --)
  local inside=(nsenter --mount="$ns/mnt" --net="$ns/net" --uts="$ns/uts" --pid="$ns/pid" --ipc="$ns/ipc" --cgroup="$ns/cgroup" --
    env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  # From the node's network, where the certificate also names the loopback address.
  in_host docker exec "$node" sed "s|server: .*|server: https://127.0.0.1:6443|" \
    /etc/kubernetes/admin.conf > "$kubeconfig"
  wrapper in-net "${net[@]}"
  wrapper in-node "${inside[@]}"
  wrapper ctr "${inside[@]}" ctr -n k8s.io
  wrapper crictl "${inside[@]}" crictl
  wrapper kubectl "${net[@]}" "$tools/kubectl" --kubeconfig "$kubeconfig"
  wrapper helm "${net[@]}" env KUBECONFIG="$kubeconfig" HELM_CACHE_HOME="$cluster/helm" "$tools/helm"
  wrapper crane "${net[@]}" "$tools/crane"
  wrapper push "$here/push.sh" "$cluster"
  wrapper restart "$kind/restart.sh" "$cluster"
  wrapper node-logs "${inside[@]}" journalctl --no-pager --lines 120 --unit containerd --unit kubelet
}

# find_or_make: uses the cluster that is up, or removes what a failed attempt has left and makes a new one.
find_or_make() {
  if node_pid > /dev/null && [ -e "$cluster/ready" ]; then
    step "found $cluster_name"
    make_wrappers
    return
  fi
  "$here/down.sh"
  start; step "docker"
  create
  serve_registry
  make_wrappers
  touch "$cluster/ready"
}

main() {
  local kubectl=$cluster/bin/kubectl
  with_lock "up-kind-$cluster_name" find_or_make
  "$kubectl" wait --for=condition=Ready "node/$node" --timeout=300s > /dev/null; step "node is Ready"
  wait_until 300 "the default service account" "$kubectl" get serviceaccount default
  "$kubectl" -n kube-system rollout status deployment coredns --timeout=300s > /dev/null; step "cluster DNS"
  echo "$cluster"
}

main "$@"; exit
