#!/bin/bash
# Process 1 of the node: makes its root, its network and its settings, and keeps its daemons running.
# Environment: what up.sh exports.
set -euo pipefail
. "$(dirname "$0")/../root.sh"

# own_root: an overlay over the machine's root whose changes are in memory, with the kernel's file systems and the node's disk.
own_root() {
  local root=/run/node-root place
  make_root $root /
  for place in "$cache" "$cluster"; do
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
  done
  # Snapshots are overlays, which cannot write to an overlay. Volumes are on a disk, as elsewhere.
  for place in containerd kubelet; do
    mkdir -p "$root/var/lib/$place"
    mount --bind "$cluster/disk/$place" "$root/var/lib/$place"
  done
  # The machine's containers and settings are not the node's.
  for place in /etc/containerd /etc/cni /etc/kubernetes /opt /var/lib/cni /var/log; do
    rm -rf --one-file-system "${root:?}$place"; mkdir -p "$root$place"
  done
  mkdir -p $root/opt/cni/bin $root/etc/cni/net.d $root/etc/containerd/conf.d $root/run/node $root/run/netns
  enter_root $root
}

network() {
  hostname "$cluster_name"
  ip link set lo up
  ip address add "$node_ip/32" dev lo
  # A route is looked up before kube-proxy's rules change the address.
  ip route add "$service_cidr" dev lo src "$node_ip"
  echo 1 > /proc/sys/net/ipv4/ip_forward
  echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables 2> /dev/null || true
}

# fill FILE: the file with @NAME@ replaced by the variable of that name.
fill() {
  local text variable
  text=$(< "$1")
  for variable in cluster_name node_ip service_cidr service_dns pod_cidr cgroup pki version; do
    text=${text//@$variable@/${!variable}}
  done
  printf '%s\n' "$text"
}

settings() {
  local file plugin
  fill "$etc/containerd.toml" > /etc/containerd/config.toml
  fill "$etc/cni.conflist" > /etc/cni/net.d/10-pods.conflist
  for file in kubeadm kubelet kube-proxy; do fill "$etc/$file.yaml" > "/etc/kubernetes/$file.yaml"; done
  printf 'nameserver %s\nsearch cluster.local\n' "$service_dns" > /etc/kubernetes/resolv.conf
  for plugin in bridge host-local loopback portmap; do ln -s "$(readlink -f "$tools/$plugin")" /opt/cni/bin/; done
  kubeadm init phase certs all --config /etc/kubernetes/kubeadm.yaml
  kubeadm init phase kubeconfig all --config /etc/kubernetes/kubeadm.yaml --kubeconfig-dir "$pki"
}

# keep NAME COMMAND...: a daemon that is restarted when it ends. Its pid is in /run/node/NAME.pid.
keep() {
  local daemon=$1; shift
  while :; do
    "$@" >> "$cluster/logs/$daemon.log" 2>&1 < /dev/null &
    echo $! > "/run/node/$daemon.pid"
    wait $! || true
    echo "$(date -Is) $daemon has ended"
    sleep 0.5
  done &
}

daemons() {
  keep containerd containerd --config /etc/containerd/config.toml
  mkdir -p "$cluster/registry"
  keep registry crane registry serve --address 127.0.0.1:5000 --disk "$cluster/registry"
  keep etcd etcd --name "$cluster_name" --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster "$cluster_name=http://127.0.0.1:2380"
  keep kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "$node_ip" \
    --service-cluster-ip-range "$service_cidr" --allow-privileged --client-ca-file "$pki/ca.crt" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
    --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$pki/apiserver-kubelet-client.key" --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$pki/sa.pub" --service-account-signing-key-file "$pki/sa.key" \
    --requestheader-client-ca-file "$pki/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group \
    --requestheader-username-headers X-Remote-User --enable-aggregator-routing \
    --proxy-client-cert-file "$pki/front-proxy-client.crt" --proxy-client-key-file "$pki/front-proxy-client.key"
  keep kube-controller-manager kube-controller-manager --kubeconfig "$pki/controller-manager.conf" \
    --bind-address 127.0.0.1 --leader-elect=false --use-service-account-credentials \
    --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
    --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/sa.key" \
    --kube-api-qps 200 --kube-api-burst 400
  keep kube-scheduler kube-scheduler --kubeconfig "$pki/scheduler.conf" --bind-address 127.0.0.1 --leader-elect=false \
    --kube-api-qps 200 --kube-api-burst 400
  keep kubelet kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig "$pki/kubelet.conf" \
    --hostname-override "$cluster_name" --node-ip "$node_ip"
  keep kube-proxy kube-proxy --config /etc/kubernetes/kube-proxy.yaml
}

main() {
  etc=$(dirname "$0")/etc
  pki=$cluster/pki
  export PATH=$daemons:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  version=$(kubeadm version -o short)
  # The scripts may be in a place that is the node's own.
  cp -r "$etc" "$cluster/etc"; etc=$cluster/etc
  own_root
  keep_sysctl vm/overcommit_memory 1; keep_sysctl vm/panic_on_oom 0
  keep_sysctl kernel/panic 10; keep_sysctl kernel/panic_on_oops 1
  keep_sysctl kernel/keys/root_maxkeys 1000000; keep_sysctl kernel/keys/root_maxbytes 25000000
  # In a user namespace the kernel only allows a proc mount that shows no more than an existing one.
  mkdir /run/node/proc; mount -t proc proc /run/node/proc
  network
  settings
  daemons
  touch "$cluster/ready"
  # Process 1 reaps the orphans of the node, and ends on SIGTERM.
  trap 'exit 0' TERM
  while :; do wait -n || true; done
}

main "$@"; exit
