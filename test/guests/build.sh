#!/bin/bash
# build.sh [NAME...]: compiles the guests with their languages' own toolchains, each language once per version of its
# sources and toolchain. A NAME is a guest (`c-hello`) or a language (`c`, `go`, `rust`, `js`, `python`, `sqlite`); default: all.
# The last line of standard output is a directory that holds a link to every guest of these languages as NAME.wasm.
# build.sh --rust-toolchain: prints the folder of the compiler that the guests in Rust are built with.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"

build_c() {
  local source name flags
  for source in "$here"/c/*.c; do
    name=$(basename "$source" .c)
    case $name in
      reactor) flags=-mexec-model=reactor ;;
      simd) flags=-msimd128 ;;
      debug) flags="-g -ffile-prefix-map=$here=/src" ;;
      *) flags= ;;
    esac
    clang --target=wasm32-wasi -O2 -Wall -Wextra $flags -o "$1/c-$name.wasm" "$source"
  done
}

build_sqlite() {
  local source
  source=$(crate_folder sqlite3-src sqlite)/source
  clang --target=wasm32-wasi -O1 -w -DSQLITE_THREADSAFE=0 -DSQLITE_OMIT_LOAD_EXTENSION -DSQLITE_OMIT_POPEN -DSQLITE_NOHAVE_SYSTEM \
    -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_GETPID \
    -o "$1/sqlite-shell.wasm" "$source/shell.c" "$source/sqlite3.c" "$here/sqlite/chmod.c" \
    -lwasi-emulated-signal -lwasi-emulated-process-clocks -lwasi-emulated-getpid
}

build_go() {
  local folder name flags
  export GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local GOFLAGS=-p=2
  cd "$here/go"
  for folder in */; do
    name=${folder%/}
    flags=; [ "$name" != reactor ] || flags=-buildmode=c-shared
    go build -trimpath -buildvcs=false $flags -o "$1/go-$name.wasm" "./$name"
  done
}

build_rust() {
  local toolchain
  toolchain=$(rust_toolchain)
  export PATH=$toolchain/bin:$PATH RUSTC=$toolchain/bin/rustc CARGO_TARGET_DIR=$cache/guests/target CARGO_BUILD_JOBS=2
  export CARGO_TARGET_WASM32_WASIP1_LINKER=wasm-ld CARGO_TARGET_WASM32_WASIP2_LINKER=wasm-component-ld
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
  with_lock rust-guests compile_rust "$1"
}

compile_rust() {
  local folder name
  cd "$here/rust"
  # Cargo goes by the time of a file. Those of this checkout may be older than what was built from another.
  find . -name '*.rs' -exec touch {} +
  cargo build --release --locked --target wasm32-wasip1 -p hello -p panic -p reactor
  cargo build --release --locked --target wasm32-wasip2 -p p2-files -p p2-hello -p p2-http -p p3-files -p p3-hello -p p3-http -p values
  for folder in */; do
    name=${folder%/}
    # A program keeps its hyphens, a library does not.
    cp "$CARGO_TARGET_DIR"/wasm32-wasip?/release/${name//-/[-_]}.wasm "$1/rust-$name.wasm"
  done
}

# rust_toolchain: prints the folder whose bin/ holds rustc with the standard library for wasm, wasm-ld, wasm-component-ld.
# rustup's toolchains may lack that library; Debian's newest rustc has it. Its programs run where they were unpacked, with their
# own loader: nothing is installed, and cargo and everything else are the machine's.
rust_toolchain() {
  local dir=$cache/toolchains/rust-$(key "$(declare -f make_rust_toolchain rust_program)")
  cached "$dir" make_rust_toolchain
  echo "$dir"
}

make_rust_toolchain() {
  local site
  site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sed 1q)
  mmdebstrap --quiet --variant=extract --include=rustc,libstd-rust-dev-wasm32,lld-22 \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
    sid "$1/sid" "deb $site sid main"
  rm -rf "$1"/sid/{var,dev,usr/share,usr/lib/gcc,usr/include}
  mkdir "$1/bin"
  rust_program "$1" rustc usr/bin/rustc '--sysroot "$root/usr"'
  rust_program "$1" wasm-ld usr/lib/llvm-22/bin/lld
  # Optimizing the linker takes longer than it saves.
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_BUILD_JOBS=2 cargo install --quiet --debug --locked --root "$1" \
    --target-dir "$1/target" wasm-component-ld@0.5.31
  rm -rf "$1/target"
}

# rust_program TOOLCHAIN NAME PROGRAM [ARGUMENTS]: makes bin/NAME, which runs the unpacked PROGRAM.
rust_program() {
  cat > "$1/bin/$2" << EOF
#!/bin/sh
root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/sid
for lib in "\$root"/usr/lib/*-linux-gnu*; do break; done
exec "\$lib"/ld-linux-*.so.* --library-path "\$lib" --argv0 $2 "\$root/$3" ${4:-} "\$@"
EOF
  chmod 755 "$1/bin/$2"
}

build_js() {
  local folder name flags wit modules=$cache/toolchains/js-$(key "$(cat "$here/js/package-lock.json")")
  cached "$modules" install_modules
  wit=$(crate_folder wasip2)/wit/deps
  cd "$here/js"
  for folder in */; do
    name=${folder%/}
    flags=; [ "$name" = http ] || flags='--disable http fetch-event'
    with_interfaces "$name" "$wit" "$1/source"
    # The JavaScript engine speaks 0.2.10, whose interfaces differ from the crate's 0.2.12 only in their number.
    sed -i 's/0\.2\.12/0.2.10/g' "$1"/source/wit/deps/*.wit
    (cd "$1/source" && node "$modules/node_modules/.bin/componentize-js" service.js \
      --wit wit -n "$name" $flags -o "../js-$name.wasm")
    rm -r "$1/source"
  done
}

install_modules() {
  cp "$here"/js/package{,-lock}.json "$1/"
  npm ci --ignore-scripts --no-audit --no-fund --prefix "$1"
}

build_python() {
  local folder name wit tools
  tools=$cache/toolchains/python-$(key "$(python3 --version)" "$(cat "$here/python/requirements.txt")")
  cached "$tools" install_packages
  wit=$(crate_folder wasip2)/wit/deps
  cd "$here/python"
  for folder in */; do
    name=${folder%/}
    with_interfaces "$name" "$wit" "$1/source"
    (cd "$1/source" && PYTHONPATH=$tools python3 "$tools/bin/componentize-py" \
      -d wit -w "$name" componentize app -o "../python-$name.wasm")
    rm -r "$1/source"
  done
}

install_packages() {
  python3 -m pip install -q --disable-pip-version-check --target "$1" -r "$here/python/requirements.txt"
}

# with_interfaces FOLDER WASI COPY: copies a guest's sources, with its world (one of its own, or one that languages share) and WASI's
# interfaces in COPY/wit.
with_interfaces() {
  cp -r "$1" "$3"
  [ -d "$3/wit" ] || cp -r "$here/wit" "$3/"
  cp -r "$2" "$3/wit/deps"
}

# crate_folder NAME [FOLDER]: where cargo keeps the sources of a crate that the guests in FOLDER (default: rust) use.
crate_folder() {
  cargo metadata --quiet --locked --format-version 1 --manifest-path "$here/${2:-rust}/Cargo.toml" | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == sys.argv[1]))' "$1"
}

# identity LANGUAGE: everything that the result depends on.
identity() {
  case $1 in
    c|sqlite) dpkg-query -W clang lld wasi-libc ;;
    go) go env GOVERSION ;;
    rust) declare -f make_rust_toolchain compile_rust ;;
    js) node --version; digest rust/Cargo.lock ;;
    python) python3 --version; digest rust/Cargo.lock ;;
  esac
  declare -f "build_$1" with_interfaces
  digest "$1" wit
}

packages() {
  case $1 in
    c|sqlite) echo clang lld wasi-libc libclang-rt-dev-wasm32 ;;
    rust) echo mmdebstrap gcc libc6-dev ;;
  esac
}

main() {
  local language languages needed dir job failed=
  local -a dirs=() jobs=() files=()
  if [ "${1:-}" = --rust-toolchain ]; then apt_need $(packages rust); rust_toolchain; return; fi
  languages=$(printf '%s\n' "${@:-c go rust js python sqlite}" | tr ' ' '\n' | sed 's/-.*//' | sort -u)
  for language in $languages; do
    [ -d "$here/$language" ] || { say "no such guest or language: $language"; exit 2; }
  done
  needed=$(for language in $languages; do packages "$language"; done)
  [ -z "$needed" ] || apt_need $needed
  for language in $languages; do
    dir=$cache/guests/$language-$(key "$(cd "$here" && identity "$language")")
    dirs+=("$dir")
    [ -d "$dir" ] || { cached "$dir" "build_$language" & jobs+=($!); }
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=yes; done
  [ -z "$failed" ] || exit 1
  for dir in "${dirs[@]}"; do files+=("$dir"/*.wasm); done
  dir=$cache/guests/all-$(key "${dirs[@]}")
  linked "$dir" "${files[@]}"
  echo "$dir"
}

main "$@"; exit
