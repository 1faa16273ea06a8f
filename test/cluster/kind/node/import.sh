# import.sh IMAGE NAME...: run in the node's tree while it is built: imports the archives of /tmp/images into containerd's
# store, packed as they are, and gives the image the names.
set -eu
mount -t proc proc /proc
mount -t tmpfs run /run
containerd --log-level warn &
daemon=$!
until ctr version > /dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
for archive in /tmp/images/*.tar; do
  ctr -n k8s.io images import --no-unpack --label io.cri-containerd.image=managed "$archive"
done
for name in "${@:2}"; do ctr -n k8s.io images tag "$1" "$name"; done
ctr -n k8s.io images remove "$1"
kill $daemon
wait $daemon
