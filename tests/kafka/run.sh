#!/bin/sh
# Runs one broker in a folder that holds its server.properties, until standard input ends: whoever started it and
# dies takes the broker along. Usage: run.sh JARS FOLDER CLUSTER_ID [FOLDER_TO_REMOVE_AT_THE_END]
set -eu
jars=$1 folder=$2 cluster=$3 remove=${4:-}
options="-Xms64m -Xmx${TCBERT_KAFKA_HEAP_MB:-384}m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto"
options="$options -Dorg.slf4j.simpleLogger.defaultLogLevel=warn ${TCBERT_KAFKA_OPTIONS:-}"

if [ ! -e "$folder/data/meta.properties" ]; then
    set -- -t "$cluster" -c "$folder/server.properties"
    # A user that the cluster is to know from its beginning.
    [ ! -e "$folder/scram" ] || set -- "$@" --add-scram "$(cat "$folder/scram")"
    # shellcheck disable=SC2086
    java $options -cp "$jars/*" kafka.tools.StorageTool format "$@" > "$folder/format.log" 2>&1
fi
# shellcheck disable=SC2086
java $options -cp "$jars/*" kafka.Kafka "$folder/server.properties" \
    < /dev/null >> "$folder/server.log" 2>&1 9>&- &
broker=$!
finish() {
    kill -9 "$broker" 2>/dev/null || true
    [ -z "$remove" ] || rm -rf "$remove"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP
echo "$broker" > "$folder/pid.new"
mv "$folder/pid.new" "$folder/pid"
cat > /dev/null || true
