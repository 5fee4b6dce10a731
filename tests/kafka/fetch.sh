#!/bin/sh
# Fetches Apache Kafka through Maven into a cache beside this script, once, and prints the folder of its jars.
# Exit code 3: Java or Maven is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${TCBERT_KAFKA_CACHE:-$here/.cache}
lib=$cache/lib
stamp=$cache/complete-$(cksum < "$here/pom.xml" | cut -d' ' -f1)

command -v java >/dev/null 2>&1 || { echo "java is missing" >&2; exit 3; }
if [ ! -e "$stamp" ]; then
    command -v mvn >/dev/null 2>&1 || { echo "mvn is missing" >&2; exit 3; }
    mkdir -p "$cache"
    # Several test processes may come here at once; one fetches, the others wait for it.
    exec 9> "$cache/lock"
    flock 9
    if [ ! -e "$stamp" ]; then
        rm -rf "$lib"
        mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$lib" >&2
        touch "$stamp"
    fi
fi
echo "$lib"
