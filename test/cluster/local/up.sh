#!/bin/bash
# up.sh: the local back end. The node is a set of namespaces: mounts, network, processes, name. Its root is the machine's, with
# all changes in memory, so that whatever is done to the node ends with its process 1.
. "$(dirname "$0")/node.sh"

apt_need curl iproute2 jq nftables procps util-linux
tools=$("$here/../tools/build.sh" containerd runc cni crictl native kubernetes registry | tail -n 1)
# The node's daemons; the clients are always the pinned ones.
daemons=$tools
if [ "${SKIFF_CLUSTER_VERSIONS:-pinned}" = oldest ]; then
  daemons=$("$here/../tools/build.sh" containerd-oldest kubernetes-oldest | tail -n 1):$tools
fi

# start: from nothing to a node whose process 1 runs.
start() {
  rm -rf --one-file-system "$cluster"
  mkdir -p "$cluster"/{bin,disk/containerd,disk/kubelet,images,logs,pki}
  make_images
  make_cgroups
  export cache cluster cluster_name tools daemons node_ip service_cidr service_dns pod_cidr cgroup
  start_init "$here/local/init.sh"
  wait_until 120 "the node's own root: see $cluster/logs/init.log" test -e "$cluster/ready"
}

# make_images: the cluster's own images, which the node imports.
make_images() {
  local root; root=$(mktemp -d)
  cp "$tools/pause" "$root/pause"
  "$here/../image.sh" localhost/pause:1 "$root" "$cluster/images/pause.tar" /pause
  rm "$root/pause"; cp "$tools/coredns" "$root/coredns"
  "$here/../image.sh" localhost/coredns:1 "$root" "$cluster/images/coredns.tar" /coredns
  rm -r "$root"
}

make_wrappers() {
  local pid; pid=$(node_pid)
  local net=(nsenter -t "$pid" --net --)
  local node=(nsenter -t "$pid" --mount --net --uts --pid --ipc --wdns=/ --)
  wrapper in-net "${net[@]}"
  wrapper in-node "${node[@]}"
  wrapper ctr "${node[@]}" "$tools/ctr" -n k8s.io
  echo "runtime-endpoint: unix:///run/containerd/containerd.sock" > "$cluster/crictl.yaml"
  wrapper crictl "${node[@]}" "$tools/crictl" --config "$cluster/crictl.yaml"
  wrapper kubectl "${net[@]}" "$tools/kubectl" --kubeconfig "$cluster/pki/super-admin.conf"
  wrapper helm "${net[@]}" env KUBECONFIG="$cluster/pki/super-admin.conf" HELM_CACHE_HOME="$cluster/helm" "$tools/helm"
  wrapper crane "${net[@]}" "$tools/crane"
  wrapper push "$here/push.sh" "$cluster"
  wrapper restart "$here/local/restart.sh" "$cluster"
  wrapper node-logs tail -n 60 "$cluster/logs/containerd.log" "$cluster/logs/kubelet.log"
}

main() {
  local kubectl=$cluster/bin/kubectl
  mkdir -p "$(dirname "$cluster")"
  if node_pid > /dev/null; then step "found $cluster_name"; else with_lock "cluster-$backend-$cluster_name" start; step "namespaces"; fi
  make_wrappers
  wait_until 300 "the API server: see $cluster/logs" "$kubectl" get --raw /readyz; step "API server"
  wait_until 300 "containerd: see $cluster/logs" "$cluster/bin/ctr" version; step "containerd"
  for image in "$cluster"/images/*.tar; do "$cluster/bin/ctr" images import "$image" > "$cluster/logs/import.log" 2>&1; done
  "$cluster/bin/ctr" images label localhost/pause:1 io.cri-containerd.pinned=pinned > "$cluster/logs/import.log" 2>&1
  sed "s/@SERVICE_DNS@/$service_dns/" "$here/local/cluster.yaml" | "$kubectl" apply -f - > /dev/null
  wait_until 300 "the node: see $cluster/logs/kubelet.log" "$kubectl" get node "$cluster_name"
  "$kubectl" wait --for=condition=Ready "node/$cluster_name" --timeout=300s > /dev/null; step "node is Ready"
  wait_until 300 "the default service account" "$kubectl" get serviceaccount default
  "$kubectl" -n kube-system rollout status deployment coredns --timeout=300s > /dev/null; step "cluster DNS"
  echo "$cluster"
}

main "$@"; exit
