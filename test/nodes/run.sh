#!/bin/bash
# run.sh [--systemd] [--mem MIB] [--timeout S] -- COMMAND...: boots a node with cgroup v2 and runs the command in it as root, in
# the caller's directory, with the caller's SKIFF_*, RUST_*, PATH and HOME. Output and exit code are the command's; 124 if the
# time ran out, 125 if the node failed. See README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }

run='' node='' timer=''
# On the machine, the node and all of its processes are one process group.
clean_up() {
  trap '' INT TERM
  [ -z "$node" ] || kill -KILL -- "-$node" 2> /dev/null || true
  [ -z "$timer" ] || kill "$timer" 2> /dev/null || true
  # The shell would report the killed processes.
  wait 2> /dev/null
  [ -z "$run" ] || rm -rf "$run"
}

# as_script COMMAND...: the command as a script, with the caller's variables that it gets.
as_script() {
  local name
  for name in $(compgen -e); do
    case $name in SKIFF_* | RUST_* | PATH | HOME) printf 'export %s=%q\n' "$name" "${!name}" ;; esac
  done
  printf 'cd %q || exit 125\nexec' "$PWD"
  printf ' %q' "$@"
  echo
}

# memory_place MIB: a folder for the node's memory, an unnamed file from which code is executed.
memory_place() {
  local options available
  options=$(findmnt -n -o OPTIONS -T /dev/shm)
  available=$(df --output=avail -BM /dev/shm | tail -n 1)
  case ,$options, in *,noexec,*) echo /tmp; return ;; esac
  [ "${available%M}" -ge "$1" ] && echo /dev/shm || echo /tmp
}

# idlest_processor: system calls are several times cheaper in a node that stays on one processor.
idlest_processor() {
  { cat /proc/stat; sleep 0.05; cat /proc/stat; } | awk -v allowed="$(taskset -cp $$ | sed 's/.*: //')" '
    BEGIN {
      for (n = split(allowed, ranges, ","); n; n--) {
        ends = split(ranges[n], range, "-")
        for (cpu = range[1]; cpu <= range[ends]; cpu++) may["cpu" cpu]
      }
    }
    $1 in may { idle[$1] = $5 + $6 - idle[$1] }
    END { for (cpu in idle) if (best == "" || idle[cpu] > idle[best]) best = cpu; print substr(best, 4) }'
}

# boot DIRECTORY MIB TREE: starts the node, with the tree's systemd unless TREE is empty. The terminals are pipes, because the
# kernel waits for them as it does for devices; `readers` are the processes at the other ends.
boot() {
  local out error console
  exec {out}> >(exec cat)
  readers=($!)
  exec {error}> >(exec cat >&2)
  readers+=($!)
  exec {console}> >(exec cat > "$run/console")
  readers+=($!)
  ulimit -n "$(ulimit -H -n)"
  TMPDIR=$(memory_place "$2") setsid taskset -c "$(idlest_processor)" setpriv --pdeathsig KILL \
    "$1/linux" mem="$2M" umid=node uml_dir="$run" panic=-1 noreboot \
    root=/dev/root rootfstype=hostfs rootflags=/ ro init="$here/init.sh" NODE_RUN="$run" ${3:+NODE_SYSTEMD="$3"} \
    con=null con0=null,fd:"$console" ssl=null ssl0=null,fd:"$out" ssl1=null,fd:"$error" \
    < /dev/null >&"$console" 2>&1 &
  node=$!
  exec {out}>&- {error}>&- {console}>&-
}

main() {
  local systemd='' mebibytes=2048 seconds=0 parts ended
  while [ $# -gt 0 ]; do
    case $1 in
      --systemd) systemd=yes ;;
      --mem) mebibytes=${2:?}; shift ;;
      --timeout) seconds=${2:?}; shift ;;
      --) shift; break ;;
      *) usage ;;
    esac
    shift
  done
  [ $# -gt 0 ] || usage
  parts=$("$here/build.sh" linux ${systemd:+systemd} | tail -n 1)

  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  run=$(mktemp -d /tmp/skiff-node.XXXXXX)
  as_script "$@" > "$run/command"
  boot "$parts" "$mebibytes" "${systemd:+$(readlink "$parts/systemd")}"
  if [ "$seconds" != 0 ]; then
    sleep "$seconds" > /dev/null 2>&1 &
    timer=$!
  fi

  ended=''
  wait -n -p ended "$node" $timer 2> /dev/null || true
  if [ "$ended" != "$node" ]; then
    echo "run.sh: the node was switched off after $seconds s" >&2
    exit 124
  fi
  node=''
  wait "${readers[@]}" || true
  if [ ! -s "$run/status" ]; then
    tail -n 40 "$run/console" >&2
    echo "run.sh: the node ended without a result" >&2
    exit 125
  fi
  exit "$(< "$run/status")"
}

main "$@"
