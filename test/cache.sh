# Sourced by the other scripts: makes what tests need once per key, in a cache that all clones share.
#
# Nothing is removed by age: a key is a hash of the sources, so an old entry is never wrong, only unused.

set -euo pipefail
shopt -s inherit_errexit
cache=${SKIFF_CACHE:-$HOME/.cache/skiff}
[ "$(nice)" -ge 5 ] || renice -n 5 $$ > /dev/null

say() { printf '%s\n' "$*" >&2; }

# digest PATH...: one hash of the names and contents below the paths, without the output of builds.
digest() {
  find "$@" \( -name target -o -name node_modules \) -prune -o -type f -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum | cut -c1-16
}

# key WORD...: one hash of the words.
key() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }

# with_lock NAME COMMAND...: runs the command while holding the lock of that name.
with_lock() {
  local lock name=$1; shift
  mkdir -p "$cache/locks"
  exec {lock}> "$cache/locks/$name"
  flock "$lock"
  # Processes that the command starts must not keep the lock after it.
  (exec {lock}>&-; "$@")
  exec {lock}>&-
}

# cached DIR COMMAND...: makes DIR by running `COMMAND... TEMPORARY_DIR`, once; DIR appears whole or not at all.
cached() {
  local dir=$1; shift
  [ -d "$dir" ] || with_lock "$(basename "$dir")" make_once "$dir" "$@"
}

make_once() {
  local dir=$1 new=$1.new log=$1.log since=$SECONDS status=0; shift
  [ ! -d "$dir" ] || return 0
  rm -rf "$new"; mkdir -p "$new"
  # A child shell, so that `set -e` applies however this is called.
  set +e; (set -e; "$@" "$new") > "$log" 2>&1 < /dev/null; status=$?; set -e
  if [ "$status" != 0 ]; then
    tail -n 40 "$log" >&2
    say "cannot make $(basename "$dir"): status $status, the whole log is $log"
    exit 1
  fi
  mv -T "$new" "$dir"; rm -f "$log"
  say "made $(basename "$dir") in $((SECONDS - since)) s"
}

# linked DIR FILE...: DIR holds a symbolic link to each file, under the file's own name.
linked() {
  local dir=$1; shift
  cached "$dir" link_all "$@"
}

# shellcheck disable=SC2145 # the last argument is the directory
link_all() { ln -s "${@:1:$#-1}" "${@: -1}/"; }

# apt_need PACKAGE...: installs the Debian packages that are missing.
apt_need() { apt_has "$@" || with_lock apt apt_install "$@"; }

apt_has() {
  local states
  states=$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2> /dev/null) && ! grep -qvx installed <<< "$states"
}

apt_install() {
  local sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  ! apt_has "$@" || return 0
  say "installing $*"
  apt_update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o DPkg::Lock::Timeout=600 "$@" > "$cache/apt.log" 2>&1 || { cat "$cache/apt.log" >&2; exit 1; }
}

# apt_update: refreshes the package lists, at most once an hour.
apt_update() {
  local sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  [ -z "$(find "$cache/apt-updated" -mmin -60 2> /dev/null)" ] || return 0
  $sudo apt-get update -qq -o DPkg::Lock::Timeout=600 >&2
  touch "$cache/apt-updated"
}

# apt_extract DIR PACKAGE...: unpacks Debian packages into DIR without installing them.
apt_extract() (
  mkdir -p "$1"; cd "$1"
  with_lock apt apt_update
  apt-get download -q "${@:2}"
  for deb in *.deb; do dpkg -x "$deb" .; rm "$deb"; done
)
