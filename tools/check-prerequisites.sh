#!/bin/sh
# Checks that what a target needs is installed, before anything is fetched or compiled, and names all
# that is missing at once, with the lines for apt and dnf that install it. Takes less than a second.
#
#     tools/check-prerequisites.sh [build] [lint] [venv] [models] [kafka]
#
#     build    compiling the worker and fetching ONNX Runtime
#     lint     rustfmt and clippy
#     venv     a virtual environment of Python
#     models   the same for PyTorch, which needs a newer Python
#     kafka    the tests against Apache Kafka: says what is skipped without Java and Maven, and fails
#              where TCBERT_TEST_REQUIRE_KAFKA is set
#
# Exit code: 0 all is there, 2 something is missing. TCBERT_SKIP_PREREQUISITES=1 skips the check.
# It has to work where next to nothing is installed: a POSIX shell and, where they exist, df and mktemp.
set -u
cd "${0%/*}/.." || exit 2
[ -z "${TCBERT_SKIP_PREREQUISITES:-}" ] || exit 0

# Free disk and memory. A first build on two cores took 3.0 GB of memory; once the dependencies are
# compiled, less is left to do.
FIRST_BUILD_MB=6000
NEXT_BUILD_MB=1000
FIRST_MEMORY_MB=3200
NEXT_MEMORY_MB=1500
BUILD_PYTHON=3.7
MODELS_PYTHON=3.11
JAVA=17

python=${PYTHON:-python3}
cargo=${CARGO:-cargo}
lines='' apt='' dnf='' rust=''
count=0

# missing WHAT APT_PACKAGES DNF_PACKAGES
missing() {
    count=$((count + 1))
    lines="$lines  - $1
"
    apt=$(with "$apt" "$2")
    dnf=$(with "$dnf" "$3")
}

# The words of $1 and those of $2 that it lacks.
with() {
    words=$1
    for word in $2; do
        case " $words " in
            *" $word "*) ;;
            *) words="$words${words:+ }$word" ;;
        esac
    done
    echo "$words"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Whether version $1 is at least version $2, by their first two numbers.
at_least() {
    major=${1%%.*} wanted_major=${2%%.*}
    minor=${1#*.} wanted_minor=${2#*.}
    case $1 in *.*) minor=${minor%%[!0-9]*} ;; *) minor=0 ;; esac
    case $2 in *.*) ;; *) wanted_minor=0 ;; esac
    case $major$minor in '' | *[!0-9]*) return 1 ;; esac
    [ "$major" -gt "$wanted_major" ] || { [ "$major" -eq "$wanted_major" ] && [ "$minor" -ge "$wanted_minor" ]; }
}

# The version in Cargo.toml is the one that counts.
wanted_rust() {
    while read -r key _ value; do
        [ "$key" != rust-version ] || { value=${value#\"} && echo "${value%\"}"; }
    done < Cargo.toml
}

check_rust() {
    wanted=$(wanted_rust)
    for program in "$cargo" "${RUSTC:-rustc}"; do
        if ! has "$program"; then
            missing "$program: Rust $wanted or newer" '' ''
            rust=yes
            continue
        fi
        said=$("$program" --version 2>&1) || said="does not run: $said"
        version=${said#* }
        version=${version%% *}
        at_least "$version" "$wanted" || {
            missing "$program: Rust $wanted or newer, this says: $(first_line "$said")" '' ''
            rust=yes
        }
    done
}

first_line() {
    echo "${1%%
*}"
}

check_compilers() {
    scratch=$(mktemp -d 2>/dev/null) || scratch=''
    if ! has "${CC:-cc}"; then
        missing "${CC:-cc}: a C compiler, which also links Rust programs" g++ gcc-c++
    elif ! printf '#include <stdio.h>\n#include <pthread.h>\n' | ${CC:-cc} -E -x c - >/dev/null 2>&1; then
        missing "stdio.h, pthread.h: the C library's headers" libc6-dev glibc-devel
    elif [ -n "$scratch" ]; then
        printf 'int main(void) { return 0; }\n' > "$scratch/main.c"
        ${CC:-cc} -o "$scratch/main" "$scratch/main.c" >/dev/null 2>&1 ||
            missing "${CC:-cc} links no program: a linker and the C library for it" 'binutils libc6-dev' 'binutils glibc-devel'
    fi
    [ -z "$scratch" ] || rm -rf "$scratch"
    if ! has "${CXX:-c++}"; then
        missing "${CXX:-c++}: a C++ compiler, for the Kafka client" g++ gcc-c++
    elif ! printf '#include <cstdlib>\n' | ${CXX:-c++} -E -x c++ - >/dev/null 2>&1; then
        missing "cstdlib: the C++ library's headers" g++ gcc-c++
    fi
    has make || missing "make: for the Kafka client and OpenSSL" make make
}

# OpenSSL's configuration is written in perl; that of the system needs none.
check_perl() {
    [ "${OPENSSL_NO_VENDOR:-0}" = 0 ] || return 0
    if ! has "${PERL:-perl}"; then
        missing "${PERL:-perl}: for OpenSSL" perl perl
    elif ! "${PERL:-perl}" -MFindBin -MFile::Compare -MFile::Copy -MIPC::Cmd -MPod::Usage -MTime::Piece -e 1 >/dev/null 2>&1; then
        missing "${PERL:-perl} lacks standard modules (FindBin, IPC::Cmd and so on), for OpenSSL" perl perl
    fi
}

# Prints the version and what this Python can do, on one line.
PYTHON_PROBE='
import sys
def pip():
    import importlib.util
    return importlib.util.find_spec("pip")
def venv():
    import ensurepip, glob, os, sysconfig, venv
    folders = ["/usr/share/python-wheels", os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")]
    folders.append(sysconfig.get_config_var("WHEEL_PKG_DIR") or folders[0])
    return any(glob.glob(os.path.join(folder, "pip-*.whl")) for folder in folders)
def download():
    import ssl, zlib
    return True
def can(test):
    try:
        return test()
    except Exception:
        return False
words = ["%d.%d" % sys.version_info[:2]] + [test.__name__ for test in (pip, venv, download) if can(test)]
print(" ".join(words))
'

# check_python WANTED_VERSION, after setting `needs_venv`.
check_python() {
    if ! has "$python"; then
        missing "$python: Python $1 or newer with venv" python3-venv python3
        return
    fi
    said=$("$python" -c "$PYTHON_PROBE" 2>&1) || said="does not run: $said"
    if ! at_least "${said%% *}" "$1"; then
        missing "$python: Python $1 or newer, this says: $(first_line "$said")" python3-venv python3
        return
    fi
    case "$said " in
        *' venv '*) ;;
        *' pip '*) [ -z "$needs_venv" ] || missing "$python -m venv, with ensurepip" python3-venv python3 ;;
        *) missing "$python -m venv, with ensurepip, or pip" python3-venv python3 ;;
    esac
    case "$said " in
        *' download '*) ;;
        *) missing "the modules ssl and zlib of $python" python3-venv python3 ;;
    esac
}

check_certificates() {
    for file in "${SSL_CERT_FILE:-}" "${CARGO_HTTP_CAINFO:-}" "${SSL_CERT_DIR:-}" /etc/ssl/certs/ca-certificates.crt \
        /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
        [ -z "$file" ] || [ ! -e "$file" ] || return 0
    done
    missing "certificates of authorities (/etc/ssl/certs/ca-certificates.crt), for downloads" ca-certificates ca-certificates
}

check_disk() {
    has df || return 0
    # A header, then: file system, size, used, available, ...
    free=$(df -Pk . 2>/dev/null | { read -r _ && read -r _ _ _ free _ && echo "$free"; })
    case $free in '' | *[!0-9]*) return 0 ;; esac
    free=$((free / 1000))
    [ "$free" -ge "$1" ] || missing "disk: $free MB are free in ${PWD:-.}, the build needs $1 MB" '' ''
}

check_memory() {
    [ -r /proc/meminfo ] || return 0
    free=0
    while read -r key value _; do
        case $key in MemAvailable: | SwapFree:) free=$((free + value / 1000)) ;; esac
    done < /proc/meminfo
    # A container's own limit.
    if [ -r /sys/fs/cgroup/memory.max ]; then
        read -r limit < /sys/fs/cgroup/memory.max
        case $limit in
            '' | *[!0-9]*) ;;
            *) [ "$((limit / 1000000))" -ge "$free" ] || free=$((limit / 1000000)) ;;
        esac
    fi
    [ "$free" -ge "$1" ] || missing "memory: $free MB are free, the build needs $1 MB" '' ''
}

check_build() {
    check_rust
    check_compilers
    check_perl
    if [ -d target/release/deps ]; then
        check_disk $NEXT_BUILD_MB
        check_memory $NEXT_MEMORY_MB
    else
        check_certificates
        check_disk $FIRST_BUILD_MB
        check_memory $FIRST_MEMORY_MB
    fi
}

check_lint() {
    for program in cargo-fmt cargo-clippy; do
        has $program || {
            missing "$program: a component of Rust (rustup component add rustfmt clippy)" '' ''
        }
    done
}

# Sets `absent` to what the tests against Apache Kafka lack.
look_for_kafka() {
    absent=''
    [ -z "${TCBERT_TEST_KAFKA:-}" ] || return 0
    if ! has java; then
        absent="Java $JAVA or newer"
    else
        said=$(java -version 2>&1) || said=''
        version=$(first_line "$said")
        version=${version#*\"}
        at_least "${version%%[!0-9.]*}" $JAVA || absent="Java $JAVA or newer (this is $version)"
    fi
    for stamp in "${TCBERT_KAFKA_CACHE:-tests/kafka/.cache}"/complete-*; do
        [ ! -e "$stamp" ] || return 0
    done
    has mvn || absent="$absent${absent:+ and }Maven"
}

check_kafka() {
    look_for_kafka
    [ -n "$absent" ] || return 0
    if [ -n "${TCBERT_TEST_REQUIRE_KAFKA:-}" ]; then
        missing "$absent, for the tests against Apache Kafka" 'default-jre-headless maven' 'java-latest-openjdk-headless maven'
    else
        echo "The tests against Apache Kafka will be skipped; they need: $absent" \
            "(apt-get install --no-install-recommends default-jre-headless maven)" >&2
    fi
}

needs_venv='' wanted_python=''
for need in "$@"; do
    case $need in
        build) wanted_python=${wanted_python:-$BUILD_PYTHON} ;;
        venv) wanted_python=${wanted_python:-$BUILD_PYTHON} needs_venv=yes ;;
        models) wanted_python=$MODELS_PYTHON needs_venv=yes ;;
        lint | kafka) ;;
        *) echo "check-prerequisites: unknown need $need: expected build, lint, venv, models or kafka" >&2 && exit 2 ;;
    esac
done
case " $* " in *' build '*) check_build ;; esac
[ -z "$wanted_python" ] || check_python "$wanted_python"
case " $* " in *' lint '*) check_lint ;; esac
case " $* " in *' kafka '*) check_kafka ;; esac

[ "$count" -gt 0 ] || exit 0
{
    echo "Missing for this target:"
    echo "$lines"
    [ -z "$apt" ] || echo "Debian, Ubuntu:  apt-get install --no-install-recommends $apt"
    [ -z "$dnf" ] || echo "Fedora:          dnf install $dnf"
    [ -z "$rust" ] || echo "Rust:            https://rustup.rs, or: rustup toolchain install stable"
    echo "Then run the same command again. (TCBERT_SKIP_PREREQUISITES=1 skips this check.)"
} >&2
exit 2
