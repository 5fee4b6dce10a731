#!/usr/bin/env bash
# The release check: the two commands of README.md on a machine that has nothing else.
#
#     tools/clean-root.sh [--suite bookworm|trixie] [--root FOLDER] [--mirror URL] [--only-prerequisites] [--ci] [--keep]
#
#     --suite                which Debian (bookworm is 12, trixie is 13; bookworm)
#     --root                 where the root is made, an absent folder (one below TMPDIR)
#     --mirror               where debootstrap downloads from (its own default)
#     --only-prerequisites   stop before the two commands, after some minutes
#     --ci                   then install Java and Maven and run .ci/run there as well
#     --keep                 leave the root for a look at it
#
# Makes a root with debootstrap's minbase, installs the line of packages that stands in README.md, copies this machine's
# Rust toolchain (the one that `rustc` starts) and what this machine needs to reach its package mirrors, and clones the
# committed HEAD. There it takes each prerequisite away in turn, in which `make demo` has to name it within two seconds,
# and then runs `make demo` and `make test`. Prints times and results.
#
# Exit code: 0 all passed without a failed test, 1 something did not, 2 it could not be tried.
# Needs root (chroot and mount), debootstrap, git and Rust. The two commands run without Java, so that the tests against
# Apache Kafka skip; --ci requires them.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=bookworm root='' mirror='' only_prerequisites='' ci='' keep=''
# What root, toolchain, downloads and both builds take, with some room.
needed_mb=14000
# Within the root.
home=/opt/newcomer
checkout=$home/tcbert-worker
rust=/opt/rust

cannot() {
    echo "clean-root: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' tools/clean-root.sh
}

while [ $# -gt 0 ]; do
    case $1 in
        --suite | --root | --mirror)
            [ $# -ge 2 ] || cannot "$1 needs a value"
            declare "${1#--}=$2"
            shift
            ;;
        --only-prerequisites) only_prerequisites=yes ;;
        --ci) ci=yes ;;
        --keep) keep=yes ;;
        --help) usage && exit 0 ;;
        *) cannot "unknown argument $1 (see --help)" ;;
    esac
    shift
done

[ "$(id -u)" -eq 0 ] || cannot "needs root, for chroot and mount"
for program in debootstrap git rustc; do
    command -v $program > /dev/null || cannot "$program is missing"
done
toolchain=$(rustc --print sysroot) || cannot "rustc does not run"
if [ -n "$root" ]; then
    [ ! -e "$root" ] || cannot "$root exists: name an absent folder"
    mkdir -p "$root"
else
    root=$(mktemp -d "${TMPDIR:-/tmp}/clean-root-XXXXXX")
fi
root=$(realpath "$root")
logs=$(mktemp -d "${TMPDIR:-/tmp}/clean-root-logs-XXXXXX")

clean_up() {
    status=$?
    for mounted in proc sys; do
        if mountpoint -q "$root/$mounted"; then
            umount "$root/$mounted" || umount --lazy "$root/$mounted" || true
        fi
    done
    if [ -n "$keep" ]; then
        echo "the root is kept: $root"
    else
        rm -rf --one-file-system "$root"
    fi
    if [ "$status" -eq 0 ]; then rm -rf "$logs"; else echo "logs: $logs"; fi
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

free_mb=$(df -Pm "$root" | awk 'NR == 2 { print $4 }')
[ "$free_mb" -ge $needed_mb ] || cannot "$free_mb MB are free in $root, $needed_mb are needed (--root FOLDER)"

say() {
    printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"
}

# step NAME COMMAND...: runs it, tells its time; what it said is in a log, whose end is shown where it failed.
step() {
    local name=$1 begun=$SECONDS status
    shift
    set +e
    (
        set -e
        "$@"
    ) > "$logs/$name.log" 2>&1 < /dev/null
    status=$?
    set -e
    took=$((SECONDS - begun))
    if [ $status -eq 0 ]; then
        say "$name: done in $((took / 60)) min $((took % 60)) s"
        return
    fi
    tail -n 40 "$logs/$name.log"
    say "$name: FAILED with exit code $status after $((took / 60)) min $((took % 60)) s"
    return 1
}

# Within the root: the mirrors' settings and nothing else of this machine's environment.
inside() {
    local kept=() name
    while IFS= read -r name; do
        kept+=("$name=${!name}")
    done < <(compgen -e | grep -E -i '^(https?|all|no)_proxy$|^PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)$|^CARGO_(NET|HTTP|REGISTRIES|SOURCE)_' || true)
    chroot "$root" /usr/bin/env -i HOME=$home TERM=dumb DEBIAN_FRONTEND=noninteractive \
        PATH="$rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        ${kept[@]+"${kept[@]}"} sh -euc "$1"
}

make_root() {
    debootstrap --variant=minbase "$suite" "$root" ${mirror:+"$mirror"}
}

# What this machine needs to reach its package mirrors: names, authorities of its own, proxies and indexes.
copy_network() {
    local file
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
        [ ! -e $file ] || cp -L $file "$root$file"
    done
    mkdir -p "$root/usr/local/share" "$root$home/.cargo" "$root$home/.config/pip"
    [ ! -d /usr/local/share/ca-certificates ] || cp -RL /usr/local/share/ca-certificates "$root/usr/local/share/"
    for file in .cargo/config.toml .config/pip/pip.conf; do
        [ ! -e "$HOME/$file" ] || cp -L "$HOME/$file" "$root$home/$file"
    done
    if command -v apt-config > /dev/null; then
        apt-config dump | grep -i '^Acquire::.*proxy' > "$root/etc/apt/apt.conf.d/90proxy" || true
    fi
}

mount_kernel() {
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
}

# Documentation is half of a toolchain.
copy_rust() {
    mkdir -p "$root$rust"
    tar -C "$toolchain" --exclude=./share/doc -cf - . | tar -C "$root$rust" -xf -
}

clone() {
    git init --quiet "$root$checkout"
    git -C "$root$checkout" fetch --quiet --depth 1 "file://$PWD" HEAD
    git -C "$root$checkout" checkout --quiet --detach FETCH_HEAD
}

# without NAME REMOVE [RESTORE]: `make demo` has to end within two seconds and to name what is missing.
without() {
    local name=$1 log="$logs/without-$1.log" expected=2 code=0 output begun took
    # Without make it is the shell that says so.
    [ "$name" != make ] || expected=127
    inside "$2" >> "$log" 2>&1 < /dev/null
    begun=$(date +%s%N)
    output=$(inside "cd $checkout && make demo" 2>&1 < /dev/null) || code=$?
    took=$((($(date +%s%N) - begun) / 1000000))
    echo "$output" >> "$log"
    if [ $code -ne $expected ] || [ $took -ge 2000 ] || ! grep -q -w -F -e "$name" <<< "$output"; then
        echo "$output"
        say "without $name: FAILED: exit code $code after $took ms"
        failed=yes
    else
        say "without $name: $took ms: $(grep -w -F -e "$name" <<< "$output" | head -n 1)"
    fi
    inside "${3-$install}" >> "$log" 2>&1 < /dev/null
}

say "Debian $suite in $root"
[ -z "$(git status --porcelain)" ] || say "what is not committed is left out"
step debootstrap make_root
step network copy_network
step mounts mount_kernel
step rust copy_rust
step clone clone
packages_line=$(sed -n 's/^sudo \(apt-get install .*\)$/\1/p' "$root$checkout/README.md")
[ -n "$packages_line" ] || cannot "README.md has no line 'sudo apt-get install ...'"
say "$packages_line"
install="apt-get --yes ${packages_line#*apt-get }"
step update inside 'apt-get update'
step packages inside "$install"

failed=''
for package in ${packages_line#*--no-install-recommends }; do
    without "$package" "apt-get --yes purge --autoremove $package"
done
# The same for what is a part of those.
without python3-venv "apt-get --yes purge 'python3.*-venv'"
without c++ 'mv /usr/bin/c++ /usr/bin/c++.away' 'mv /usr/bin/c++.away /usr/bin/c++'
without libc6-dev 'mv /usr/include /usr/include.away' 'mv /usr/include.away /usr/include'
without Rust "mv $rust $rust.away" "mv $rust.away $rust"
if [ -n "$only_prerequisites" ]; then
    [ -z "$failed" ]
    exit
fi

step demo inside "cd $checkout && make demo" || failed=yes
tail -n 2 "$logs/demo.log"
# tests NAME: what the tests of a step came to.
tests() {
    awk '/^test result: / { passed += $4; failed += $6; ignored += $8 } /^SKIPPED/ { skipped += 1 }
        END { printf "tests: %d passed, %d failed, %d ignored; %d of them skipped\n", passed, failed, ignored, skipped }' "$logs/$1.log"
    grep -E '^test .*FAILED$' "$logs/$1.log" || true
}
step test inside "cd $checkout && make test" || failed=yes
tests test
if [ -n "$ci" ]; then
    java_packages=$(sed -n 's/^On Debian, Java and Maven are the packages `\(.*\)`.*/\1/p' "$root$checkout/README.md")
    [ -n "$java_packages" ] || cannot "README.md does not name the packages of Java and Maven"
    step java inside "apt-get --yes install --no-install-recommends $java_packages"
    step ci inside "cd $checkout && bash .ci/run" || failed=yes
    tests ci
fi
du -sm "$root$checkout/target" "$root$home/.cargo" "$root$checkout/.deps" | sed "s|$root||"
[ -z "$failed" ] || exit 1
say "both commands${ci:+ and .ci/run} passed on Debian $suite"
